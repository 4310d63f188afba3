"""Presets of algorithms: each says what its paper says, and trains."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, Qwen3Config

from areal_x.api.config import ExperimentConfig
from areal_x.api.config_checks import check_config
from areal_x.api.engine_api import TrainEngine
from areal_x.api.records import TrainBatch, Trajectory, TrajectoryGroup, VersionSpan
from areal_x.launch.compose import ConfigSource, compose_config
from areal_x.launch.config_files import config_groups, config_header, config_names, find_config
from areal_x.trainer.batch import build_batch
from areal_x.trainer.models_beside import make_critic
from areal_x.trainer.policy_step import PolicyStep
from areal_x.trainer.roles import make_train_engine

PRESETS = config_groups()["algorithm"]
GRPO: dict[str, Any] = {"algorithm.baseline": "group_mean", "algorithm.scale_by": "group_std"}
CLIP: dict[str, Any] = {"algorithm.policy_loss": "clip", "algorithm.clip_low": 0.2, "algorithm.clip_high": 0.2}
BY_TOKEN, BY_SEQUENCE = {"algorithm.aggregation": "token"}, {"algorithm.aggregation": "sequence"}
DECOUPLED: dict[str, Any] = {"algorithm.advantage": "group", "algorithm.correction": "decoupled"}
EXPECTED: dict[str, dict[str, Any]] = {
    "grpo": GRPO | CLIP | BY_SEQUENCE | DECOUPLED,
    "dr_grpo": CLIP | DECOUPLED | {"algorithm.scale_by": "none", "algorithm.aggregation": "constant"},
    "dapo": GRPO
    | CLIP
    | BY_TOKEN
    | DECOUPLED
    | {"algorithm.clip_high": 0.28, "rollout.filter": "nonzero_variance", "rollout.filter_kwargs.key": "reward"}
    | {"rollout.max_redraws": 256, "reward.overlong.buffer_share": 0.2, "reward.overlong.penalty": 1.0},
    "lite_ppo": GRPO | CLIP | BY_TOKEN | DECOUPLED | {"algorithm.scale_by": "batch_std"},
    "rloo": DECOUPLED
    | {"algorithm.baseline": "leave_one_out", "algorithm.scale_by": "none", "algorithm.policy_loss": "reinforce"}
    | {"algorithm.aggregation": "constant", "algorithm.loss_length": 1, "algorithm.kl_in": "reward"},
    "reinforce": DECOUPLED
    | {"algorithm.baseline": "batch_mean", "algorithm.scale_by": "none", "algorithm.policy_loss": "reinforce"},
    "reinforce_pp": CLIP
    | BY_TOKEN
    | {"algorithm.advantage": "reinforce_pp", "algorithm.discount": 1.0, "algorithm.kl_in": "reward"}
    | {"algorithm.kl_estimator": "k1", "algorithm.kl_coefficient": 0.01},
    "reinforce_pp_baseline": CLIP
    | BY_TOKEN
    | {"algorithm.advantage": "reinforce_pp_baseline", "algorithm.kl_in": "loss", "algorithm.kl_estimator": "k2"},
    "gspo": GRPO
    | BY_SEQUENCE
    | {"algorithm.policy_loss": "gspo", "algorithm.clip_low": 3e-4, "algorithm.clip_high": 4e-4},
    "cispo": GRPO | BY_TOKEN | {"algorithm.policy_loss": "cispo", "algorithm.clip_low": 1.0},
    "sapo": GRPO
    | BY_SEQUENCE
    | {"algorithm.policy_loss": "sapo", "algorithm.policy_loss_kwargs": {"tau_pos": 1.0, "tau_neg": 1.05}},
    "m2po": GRPO | CLIP | BY_TOKEN | {"algorithm.correction": "m2po"},
    "ppo": CLIP | BY_TOKEN | {"algorithm.advantage": "gae", "algorithm.gae_lambda": 0.95},
    "raft": {"algorithm.advantage": "raft", "algorithm.policy_loss": "likelihood", "algorithm.correction": "none"},
}


@functools.cache
def composed(preset: str) -> ExperimentConfig:
    """The preset on a quickstart of 24 samples a step, in parts where it can be cut."""
    sizes = ("rollout.group_size=4", "train.batch_size=24", "train.micro_batch_tokens=128", "rollout.max_length=16")
    rates = ("train.warmup_steps=0", "train.learning_rate=3e-3", "model.device=cpu")
    return compose_config(ConfigSource.named("quickstart"), [*sizes, *rates, f"algorithm={preset}"])


def test_every_preset_is_here() -> None:
    assert sorted(EXPECTED) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_short_and_says_what_its_paper_says(preset: str) -> None:
    path = find_config(f"algorithm/{preset}")
    assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 10
    assert "https://" in config_header(path).splitlines()[0]
    config = OmegaConf.structured(composed(preset))
    assert config.algorithm.name == preset
    assert {key: OmegaConf.select(config, key) for key in EXPECTED[preset]} == EXPECTED[preset]


@pytest.mark.parametrize("name", [name for name in config_names() if name != "train_rm"])
def test_any_algorithm_goes_with_any_correction(name: str) -> None:
    algorithm, correction = {"quickstart": ("dapo", "icepop"), "gsm8k": ("m2po", "none")}.get(name, ("ppo", "mis"))
    overrides = ["data.path=x.jsonl", f"algorithm={algorithm}", f"correction={correction}"]
    config = compose_config(ConfigSource.named(name), overrides)
    assert (config.algorithm.name, config.algorithm.correction) == (algorithm, correction)
    assert set(config_groups()["correction"]) == {"decoupled", "icepop", "mis", "none", "sequence_mask", "tis"}


def test_another_objective_does_not_inherit_the_arguments_of_a_preset() -> None:
    config = compose_config(ConfigSource.named("quickstart"), ["algorithm=sapo", "algorithm.policy_loss=clip"])
    assert config.algorithm.policy_loss_kwargs == {}
    config = compose_config(ConfigSource.named("quickstart"), ["algorithm=dapo", "rollout.filter=reward_range"])
    assert config.rollout.filter_kwargs == {} and config.rollout.max_redraws == 256


# ---------------------------------------------------------------------------------------------------------------------

VOCABULARY = 13


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 8, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=VOCABULARY, num_hidden_layers=1, num_key_value_heads=1, bos_token_id=0, eos_token_id=0, **sizes
        )
    )
    path = tmp_path_factory.mktemp("presets") / "model"
    model.save_pretrained(path)
    return path


def made_groups(engine: TrainEngine) -> list[TrajectoryGroup]:
    """Six groups, one of them smaller, one with a masked sample: the reward counts the sevens among the sampled tokens.
    Some tokens are older than others; their log-probabilities are the policy's and some noise, as of another engine."""
    generator = np.random.default_rng(1)
    groups = []
    for number in range(6):
        trajectories, rewards = [], []
        for _ in range(3 if number == 2 else 4):
            length = int(generator.integers(6, 13))
            ids = generator.integers(1, VOCABULARY, length).astype(np.int32)
            mask = np.arange(length) >= 2
            spans = [VersionSpan(2, 5, 0), VersionSpan(5, length, 1)]
            trajectories.append(Trajectory(ids, mask, np.zeros(length, np.float32), spans))
            rewards.append(float((ids[mask] == 7).sum()) / 4)
        rewards[0], rewards[1] = 1.0, 0.0
        groups.append(TrajectoryGroup(number, trajectories, np.array(rewards, np.float32)))
    groups[4].rewards[3] = np.nan
    groups[4].trajectories[3].loss_mask[:] = False
    batch = build_batch(groups)
    noisy = engine.logprobs(batch) + 0.02 * generator.standard_normal(len(batch.input_ids)).astype(np.float32)
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    for trajectory, start, end in zip(trajectories, batch.offsets[:-1], batch.offsets[1:], strict=True):
        trajectory.logprobs[:] = np.where(trajectory.loss_mask, noisy[start:end], 0)
    return groups


def gain(engine: TrainEngine, batch: TrainBatch, before: np.ndarray[Any, Any], rewards: np.ndarray[Any, Any]) -> float:
    """How much more likely better samples have become than worse ones of their groups."""
    changes = np.where(batch.loss_mask, engine.logprobs(batch) - before, 0)
    change = np.add.reduceat(changes, batch.offsets[:-1])
    means = np.array([np.nanmean(rewards[batch.group_ids == group]) for group in batch.group_ids])
    return float(np.nansum((rewards - means) * change))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains(preset: str, model_path: Path, tmp_path: Path) -> None:
    config = composed(preset)
    config.runs_dir = str(tmp_path)
    check_config(config)
    engine = make_train_engine(config, str(model_path))
    engine.version = 1
    step = PolicyStep(config, engine, make_critic(config, str(model_path)))
    groups = made_groups(engine)
    batch, rewards = build_batch(groups), np.concatenate([group.rewards for group in groups])
    before = engine.logprobs(batch)
    size = config.groups_per_part
    for number in (1, 2, 3):
        for first in range(0, len(groups), size):
            outcome = step.take(number, groups[first : first + size], first + size >= len(groups))
        assert outcome is not None
        metrics = outcome.metrics
        assert np.isfinite(list(metrics.values())).all() and metrics["train/skipped_steps"] == 0
        assert "train/loss" in metrics and metrics["train/trained_tokens"] > 0
        assert outcome.advantages.shape == rewards.shape and outcome.advantages[np.isnan(rewards)] == 0
        assert {"advantage/mean", "advantage/std", "advantage/min", "advantage/max"} <= set(metrics)
        assert metrics["advantage/zero_fraction"] < 1
        assert ("critic/explained_variance" in metrics) == config.uses_critic
        assert ("advantage/kl" in metrics) == (config.uses_reference and config.algorithm.kl_in == "reward")
    assert gain(engine, batch, before, rewards) > 0.01
