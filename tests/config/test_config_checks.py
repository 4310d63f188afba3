"""Values and combinations that cannot work, each refused by key, value and fix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.config import ExperimentConfig, RewardPartConfig
from areal_x.api.config_checks import check_config
from areal_x.api.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    """A configuration that passes."""
    config = ExperimentConfig(name="run", runs_dir=str(tmp_path / "runs"))
    config.data.path = "arithmetic"
    config.model.init = {"architecture": "qwen3", "tokenizer": "characters", "hidden_size": 32}
    check_config(config)
    return config


def assign(config: ExperimentConfig, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    target: Any = config
    for section in sections:
        target = getattr(target, section)
    assert hasattr(target, name), key
    setattr(target, name, value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", "???", "give the run a name"),
        ("name", "", "give the run a name"),
        ("name", "a/b", "must not hold /"),
        ("name", "..", "must not hold /"),
        ("seed", -1, "from 0 to"),
        ("train.batch_size", 12, "multiple of rollout.group_size=8, such as"),
        ("train.batch_size", 0, "must be 1 or more"),
        ("train.batch_size", 4, "multiple of rollout.group_size=8, such as 8"),
        ("train.total_steps", -1, "must be 0 or more"),
        ("train.learning_rate", -1e-4, "must be 0 or more"),
        ("train.learning_rate", float("nan"), "must be 0 or more"),
        ("train.learning_rate", float("inf"), "must be 0 or more"),
        ("train.lr_schedule", "cosin", "did you mean cosine?"),
        ("train.betas", [0.9], "two numbers"),
        ("train.betas", [0.9, 1.0], "two numbers"),
        ("train.max_grad_norm", 0.0, "must be above 0"),
        ("train.min_lr_ratio", 1.5, "from 0 to 1"),
        ("train.micro_batch_tokens", 0, "must be 1 or more"),
        ("train.num_threads", 0, "must be 1 or more"),
        ("rollout.engine", "embeded", "did you mean embedded?"),
        ("rollout.group_size", 1, "no baseline"),
        ("rollout.group_size", 0, "must be 1 or more"),
        ("rollout.max_staleness", -1, "must be 0 or more"),
        ("rollout.kv_on_update", "drop", "must be one of abort, keep, recompute"),
        ("rollout.num_slots", 0, "must be 1 or more"),
        ("rollout.max_length", 1, "must be 2 or more"),
        ("rollout.max_length", 256, "leaves no room for a prompt"),
        ("rollout.max_concurrent", 4, "one group has group_size=8"),
        ("rollout.episode_timeout_seconds", 0.0, "must be above 0"),
        ("rollout.sampling.temperature", 0.0, "greedy samples"),
        ("rollout.sampling.temperature", -1.0, "must be 0 or more"),
        ("rollout.sampling.top_p", 0.0, "above 0 and at most 1"),
        ("rollout.sampling.top_p", 1.1, "above 0 and at most 1"),
        ("rollout.sampling.top_k", -1, "must be 0 or more"),
        ("rollout.sampling.top_p", 0.9, "training needs untruncated samples"),
        ("rollout.sampling.top_k", 50, "training needs untruncated samples"),
        ("rollout.sampling.stop", [""], "must not be empty"),
        ("rollout.sampling.stop_token_ids", [-1], "must be 0 or more"),
        ("rollout.filter", "filters.py:keep", "no such file: filters.py"),
        ("reward.fn", "mine.py", "with the name of what to take"),
        ("reward.fn", "mine.py:score", "no such file: mine.py"),
        ("reward.on_failure", "zero", "must be drop, mask, raise or a number"),
        ("reward.on_failure", "nan", "must be drop, mask, raise or a number"),
        ("reward.timeout_seconds", 0.0, "must be above 0"),
        ("reward.max_failure_rate", 1.1, "from 0 to 1"),
        ("reward.num_workers", 0, "must be 1 or more"),
        ("reward.fn", "trl:mine.py:score", "no such file: mine.py"),
        ("reward.fn", "open_rlhf:mine.py:score", "'open_rlhf' is none of the libraries areal, openrlhf, slime"),
        ("reward.post_process", "mine.py:score", "no such file: mine.py"),
        ("reward.aggregation", "sum", "must be one of normalize_then_sum, sum_then_normalize"),
        ("reward.aggregation", "normalize_then_sum", "list several in reward.rewards"),
        ("reward.scale", float("inf"), "must be a finite number"),
        ("reward.clip", [1.0, 0.0], "the lower one first"),
        ("reward.clip", [1.0], "two numbers"),
        ("reward.overlong.buffer_tokens", 257, "from 0 to rollout.sampling.max_new_tokens=256"),
        ("reward.overlong.penalty", -1.0, "must be 0 or more"),
        ("reward.rewards", {"a/b": RewardPartConfig()}, "must not be empty, hold a /"),
        ("reward.rewards", {"reward": RewardPartConfig()}, "or be one of reward"),
        ("reward.rewards", {"mean": RewardPartConfig()}, "or be one of reward, mean"),
        ("reward.rewards", {"a": RewardPartConfig(weight=0.0)}, "all weights 0"),
        ("reward.scale", 0.0, "makes all rewards equal"),
        ("reward.reward_key", "", "name the key"),
        ("reward.rewards", {"a": RewardPartConfig(weight=float("nan"))}, "rewards.a.weight=nan"),
        ("reward.rewards", {"a": RewardPartConfig(fn="mine.py:f")}, "no such file: mine.py"),
        ("algorithm.baseline", "group_men", "did you mean group_mean?"),
        ("algorithm.scale_by", "std", "must be one of batch_std, group_std, none"),
        ("workflow.path", "flow.py:Mine", "no such file: flow.py"),
        ("algorithm.clip_low", 1.5, "from 0 to 1"),
        ("algorithm.kl_coefficient", -0.1, "must be 0 or more"),
        ("algorithm.num_mini_batches", 33, "a step has only 32 groups"),
        ("data.path", "???", "name a file"),
        ("data.path", "nope.jsonl", "no such file"),
        ("data.path", "./nope", "no such file"),
        ("data.path", "arithmetics", "did you mean arithmetic?"),
        ("data.prompt_key", "", "name the column"),
        ("data.limit", 0, "must be 1 or more"),
        ("data.eval_path", "nope.parquet", "no such file"),
        ("model.init", None, "model.path is not set"),
        ("model.dtype", "float23", "did you mean float32?"),
        ("model.device", "gpu", "must be one of"),
        ("model.init", {"hiden_size": 3}, "did you mean hidden_size?"),
        ("model.init", {"hidden_size": 0}, "must be 1 or more"),
        ("model.init", {"num_heads": 4, "num_kv_heads": 3}, "must divide num_heads=4"),
        ("model.init", {"tokenizer": "words"}, "must be one of bpe, characters"),
        ("sft.batch_size", 0, "must be 1 or more"),
        ("evaluation.every_steps", -1, "must be 0 or more"),
        ("evaluation.limit", 0, "must be 1 or more"),
        ("evaluation.group_size", 4, "greedy samples of a prompt are all alike; use 1, or set evaluation.sampling.t"),
        ("observe.trajectories_per_step", -2, "must be -1 or more"),
    ],
)
def test_a_bad_value_is_refused(config: ExperimentConfig, key: str, value: Any, expected: str) -> None:
    assign(config, key, value)
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    message = str(caught.value)
    assert expected in message and key.rpartition(".")[2].partition("=")[0] in message and "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reward.on_failure", "-0.5"),
        ("reward.on_failure", "mask"),
        ("rollout.max_staleness", 0),
        ("evaluation.sampling.temperature", 0.0),
        ("evaluation.sampling.top_p", 0.9),
        ("evaluation.sampling.top_k", 20),
        ("train.total_steps", 0),
        ("data.path", "openai/gsm8k"),
        ("data.path", "my_package.data:rows"),
        ("model.device", "cuda:1"),
        ("reward.fn", "package.module:score"),
        ("reward.fn", "slime:package.module.score"),
        ("reward.clip", [-1.0, 1.0]),
        ("reward.overlong.buffer_tokens", 16),
        ("reward.rewards", {"accuracy": RewardPartConfig(weight=-0.5)}),
        ("algorithm.baseline", "leave_one_out"),
        ("algorithm.scale_by", "batch_std"),
    ],
)
def test_a_good_value_passes(config: ExperimentConfig, key: str, value: Any) -> None:
    assign(config, key, value)
    check_config(config)


def test_files_are_looked_at(config: ExperimentConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("x")
    for path, expected in [
        (tmp_path, "is a folder"),
        (tmp_path / "empty.jsonl", "is empty"),
        (tmp_path / "notes.txt", "end in"),
    ]:
        config.data.path = str(path)
        with pytest.raises(ConfigError, match=expected):
            check_config(config)


def test_a_model_folder_needs_its_config(config: ExperimentConfig, tmp_path: Path) -> None:
    config.model.init = None
    config.model.path = str(tmp_path)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_config(config)
    (tmp_path / "config.json").write_text("{}")
    check_config(config)
    for path in (str(tmp_path / "config.json"), str(tmp_path / "nope"), "models/nope", "nope"):
        config.model.path = path
        with pytest.raises(ConfigError, match=r"model\.path"):
            check_config(config)


def test_a_runs_folder_that_cannot_be_written_is_refused(config: ExperimentConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    config.runs_dir = str(tmp_path / "file" / "runs")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        check_config(config)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    config.runs_dir = str(tmp_path / "locked" / "runs")
    with pytest.raises(ConfigError, match="cannot be written to"):
        check_config(config)


def test_a_system_prompt_needs_a_template(config: ExperimentConfig) -> None:
    config.data.system_prompt = "Think."
    config.data.chat_template = False
    with pytest.raises(ConfigError, match=r"data\.chat_template=true"):
        check_config(config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reward.fn": "math"}, "reward.rewards is set, too"),
        ({"reward.aggregation": "normalize_then_sum", "reward.scale": 2.0}, "they need sum_then_normalize"),
        ({"reward.kwargs": {"a": 1}}, "reward.rewards is set, too"),
        ({"reward.group": True}, "reward.rewards is set, too"),
        ({"reward.aggregation": "normalize_then_sum", "reward.reward_key": "format"}, "picks one of several"),
        ({"reward.aggregation": "normalize_then_sum", "reward.on_failure": "0"}, "a number cannot stand for several"),
    ],
)
def test_several_rewards_do_not_go_with_everything(
    config: ExperimentConfig, changes: dict[str, Any], expected: str
) -> None:
    config.reward.rewards = {"accuracy": RewardPartConfig(), "format": RewardPartConfig()}
    check_config(config)
    for key, value in changes.items():
        assign(config, key, value)
    with pytest.raises(ConfigError, match=expected):
        check_config(config)


def test_a_group_of_one_needs_a_baseline_of_the_batch(config: ExperimentConfig) -> None:
    config.rollout.group_size = 1
    config.algorithm.baseline = "batch_mean"
    with pytest.raises(ConfigError, match=r"rollout\.group_size=1: algorithm\.scale_by=group_std compares samples"):
        check_config(config)
    config.algorithm.scale_by = "batch_std"
    check_config(config)
    assert config.groups_per_part == config.groups_per_step


@pytest.mark.parametrize(("key", "value"), [("reward.fn", "mine.py:score"), ("data.path", "train.jsonl")])
def test_a_missing_file_says_which_folder_was_searched(
    config: ExperimentConfig, key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assign(config, key, value)
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert f"in {tmp_path}, the working directory, where relative paths begin" in str(caught.value)
    assign(config, key, f"/no_such_folder/{value}")
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert "no such file" in str(caught.value) and str(tmp_path) not in str(caught.value)
