"""The example that compares algorithms, and the algorithm of a user's own that lies beside it."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from trainer_runs import TINY_INIT

from areal_x.api.advantage_api import RewardedSamples
from areal_x.launch.checked import checked_config
from areal_x.launch.compose import ConfigSource

EXAMPLE = Path(__file__).parents[2] / "examples" / "algorithms"


def test_ranks_of_a_group() -> None:
    ranked = runpy.run_path(str(EXAMPLE / "my_algorithm.py"))["ranked"]
    rewards = np.array([1, 5, 1000, np.nan, 2, 2, 7], np.float32)
    groups = np.array([1, 1, 1, 1, 2, 2, 3])
    tokens = np.ones(7, bool)
    samples = RewardedSamples(rewards, groups, np.ones(7, np.int32), tokens, tokens)
    assert ranked(samples, negative_weight=0.5).tolist() == [-0.5, 0, 1, 0, 0, 0, 0]


def test_the_preset_beside_the_configuration_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE)
    algorithm = checked_config("train", ConfigSource.file("compare.yaml"), ["algorithm=ranked"]).algorithm
    assert (algorithm.name, algorithm.advantage) == ("ranked", "my_algorithm.py:ranked")


def test_an_algorithm_is_run_and_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "algorithms"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("comparison", "__pycache__"))
    compare = runpy.run_path(str(folder / "compare.py"))
    start = [*(f"model.init.{key}={value}" for key, value in TINY_INIT.items()), "sft.steps=40", "sft.batch_size=32"]
    sizes = ["train.batch_size=32", "rollout.num_slots=32", "rollout.group_size=4", "evaluation.limit=8"]
    few = ["reward.num_workers=1", "observe.progress=false"]
    arguments = ["--algorithms", "ranked", "--steps", "2", *sizes, *few, "--start", *start]
    compare["main"](arguments)
    output = folder / "comparison"
    rows = (output / "table.md").read_text().splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == ["ranked"]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    steps = [json.loads(line) for line in (output / "runs" / "ranked_seed1_steps2" / "metrics.jsonl").open()]
    assert sum("advantage/zero_fraction" in row for row in steps) == 2
    written = (output / "curves.png").stat().st_mtime_ns, (output / "start" / "policy").stat().st_mtime_ns
    compare["main"](arguments)
    assert (output / "curves.png").stat().st_mtime_ns > written[0], "drawn again, from runs that are there"
    assert (output / "start" / "policy").stat().st_mtime_ns == written[1]
