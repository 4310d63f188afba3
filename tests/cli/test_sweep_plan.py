"""Names of a sweep's runs: each its own, each telling its values."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_x.api.errors import ConfigError
from areal_x.launch.compose import ConfigSource, compose_config
from areal_x.launch.sweep import plan_sweep

QUICKSTART = ConfigSource.named("quickstart")


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["seed=1,2"], ["quickstart_seed-1", "quickstart_seed-2"]),
        (["name=a,b"], ["a", "b"]),
        (["name=a,a"], ["a", "a_2"]),
        (["name=x", "seed=1,2"], ["x_seed-1", "x_seed-2"]),
        (
            ["train.learning_rate=1e-4,1e-3", "sft.learning_rate=0.1"],
            ["quickstart_learning_rate-0.0001", "quickstart_learning_rate-0.001"],
        ),
        (
            ["train.learning_rate=1e-4,1e-3", "sft.learning_rate=0.1,0.2"],
            [
                f"quickstart_train.learning_rate-{a}_sft.learning_rate-{b}"
                for a in ("0.0001", "0.001")
                for b in ("0.1", "0.2")
            ],
        ),
        (["algorithm=grpo,reinforce"], ["quickstart_algorithm-grpo", "quickstart_algorithm-reinforce"]),
        (["data.kwargs.num_digits=3,4"], ["quickstart_num_digits-3", "quickstart_num_digits-4"]),
        (["train.betas=[0.9,0.95],[0.9,0.99]"], ["quickstart_betas-0.9-0.95", "quickstart_betas-0.9-0.99"]),
    ],
)
def test_names(overrides: list[str], names: list[str], tmp_path: Path) -> None:
    runs = plan_sweep("train", QUICKSTART, [f"runs_dir={tmp_path}", *overrides])
    assert [run.name for run in runs] == names
    for run in runs:
        assert compose_config(QUICKSTART, run.overrides) == run.config


def test_all_runs_are_checked_before_the_first_starts() -> None:
    with pytest.raises(ConfigError, match=r"run train\.batch_size=9: train\.batch_size=9: must be a multiple"):
        plan_sweep("train", QUICKSTART, ["train.batch_size=16,9"])
