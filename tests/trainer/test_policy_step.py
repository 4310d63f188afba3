"""One step of a policy: what is asked of whom, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_x.api.advantage_api import Advantages, RewardedSamples
from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import TrainEngine
from areal_x.api.errors import ConfigError
from areal_x.api.records import FloatArray, TrainBatch, Trajectory, TrajectoryGroup, VersionSpan
from areal_x.trainer.batch import build_batch
from areal_x.trainer.nonfinite import nonfinite_inputs
from areal_x.trainer.policy_step import PolicyStep
from areal_x.trainer.step_advantages import critic_metrics, estimate_advantages


class Models(TrainEngine):
    """Policy, reference and critic in one that tell what they were asked; the reference is 0.5 nats below."""

    version = 0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.batches: list[TrainBatch] = []

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        self.calls.append("policy")
        self.batches.append(batch)
        return {"train/loss": 0.0}

    def accumulate(self, part: TrainBatch) -> None:
        self.calls.append("accumulate")
        self.batches.append(part)

    def apply(self) -> dict[str, float]:
        self.calls.append("apply")
        return {"train/loss": 0.0}

    def discard(self) -> None:
        self.calls.append("discard")

    def logprobs(self, batch: TrainBatch) -> FloatArray:
        self.calls.append("logprobs")
        return np.full(len(batch.input_ids), -1.0, np.float32)

    def reference_logprobs(self, batch: TrainBatch) -> FloatArray:
        self.calls.append("reference")
        return np.full(len(batch.input_ids), -1.5, np.float32)

    def update_reference(self) -> None:
        self.calls.append("reference follows")

    facts: Any = None
    sft_step: Any = None
    reset_optimizer: Any = None
    named_weights: Any = None
    save: Any = None
    load: Any = None


class ConstantCritic:
    """Expects 0.25 everywhere."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def values(self, batch: TrainBatch) -> FloatArray:
        self.calls.append("values")
        return np.full(len(batch.input_ids), 0.25, np.float32)

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        assert batch.returns is not None
        self.calls.append("critic")
        return {"critic/loss": 1.0}

    begin_checkpoint: Any = None
    end_checkpoint: Any = None
    restore_checkpoint: Any = None


def made_config(**algorithm: Any) -> ExperimentConfig:
    config = ExperimentConfig(name="run")
    config.rollout.group_size, config.train.batch_size = 2, 4
    for name, value in algorithm.items():
        setattr(config.algorithm, name, value)
    return config


def made_groups() -> list[TrajectoryGroup]:
    """Two groups of two samples of a prompt token and two sampled ones."""
    groups = []
    for number, rewards in enumerate(([1.0, 0.0], [1.0, np.nan])):
        trajectories = [
            Trajectory(
                np.arange(3, dtype=np.int32),
                np.array([False, True, not np.isnan(reward)]),
                np.zeros(3, np.float32),
                [VersionSpan(1, 3, 0)],
            )
            for reward in rewards
        ]
        trajectories[1].loss_mask[:] &= not np.isnan(rewards[1])
        groups.append(TrajectoryGroup(number, trajectories, np.array(rewards, np.float32)))
    return groups


def test_parts_are_added_up_and_applied_once() -> None:
    models, config = Models(), made_config(scale_by="none")
    config.train.micro_batch_tokens = config.rollout.max_length
    step, groups = PolicyStep(config, models), made_groups()
    assert step.take(1, groups[:1], False) is None
    outcome = step.take(1, groups[1:], True)
    assert outcome is not None and models.calls == ["accumulate", "accumulate", "apply"]
    assert outcome.advantages.tolist() == [0.5, -0.5, 0, 0]
    # Of three samples that have a reward one is alone in its group.
    assert outcome.metrics["advantage/zero_fraction"] == pytest.approx(1 / 3)
    assert outcome.metrics["advantage/max"] == 0.5
    # A step whose groups were all rejected is still a step.
    outcome = step.take(2, [], True)
    assert outcome is not None and models.calls[-1] == "apply" and len(outcome.advantages) == 0


def test_divergence_is_taken_from_the_reward() -> None:
    models = Models()
    config = made_config(scale_by="none", baseline="none", kl_coefficient=0.1, kl_in="reward", kl_estimator="k1")
    config.reference.ema_decay, config.reference.update_every_steps = 0.9, 2
    step = PolicyStep(config, models)
    outcome = step.take(1, made_groups(), True)
    assert outcome is not None and models.calls == ["logprobs", "reference", "policy"]
    assert outcome.advantages.tolist() == pytest.approx([0.9, -0.1, 0.9, 0.0])
    assert outcome.metrics["advantage/kl"] == pytest.approx(0.5)
    assert outcome.metrics["advantage/kl_of_sample"] == pytest.approx(1.0)
    assert models.batches[0].proximal is not None and models.batches[0].reference is not None
    step.take(2, made_groups(), True)
    assert models.calls[-2:] == ["policy", "reference follows"]


def test_divergence_in_the_loss_is_the_engines_own_matter() -> None:
    models = Models()
    PolicyStep(made_config(kl_coefficient=0.1), models).take(1, made_groups(), True)
    assert models.calls == ["accumulate", "apply"] or models.calls == ["policy"]


def test_a_critic_learns_before_the_policy_and_alone_at_first() -> None:
    models, config = Models(), made_config(advantage="gae")
    config.critic.policy_starts_after = 1
    step = PolicyStep(config, models, ConstantCritic(models.calls))
    first, second = (step.take(number, made_groups(), True) for number in (1, 2))
    assert models.calls == ["values", "critic", "values", "critic", "policy"]
    assert first is not None and second is not None
    assert (first.metrics["critic/policy_waits"], second.metrics["critic/policy_waits"]) == (1.0, 0.0)
    assert "train/loss" not in first.metrics and second.metrics["critic/loss"] == 1.0
    batch = models.batches[0]
    assert batch.returns is not None and batch.values is not None
    # Values that never change foretell nothing of returns that do.
    assert second.metrics["critic/explained_variance"] == pytest.approx(0.0)
    assert second.metrics["critic/return_mean"] == pytest.approx(2 / 3)


def test_a_critic_needs_returns_to_learn() -> None:
    config = made_config()
    config.critic.enabled = True
    with pytest.raises(ConfigError, match="gave no returns, so the critic has nothing to learn"):
        PolicyStep(config, Models(), ConstantCritic([])).take(1, made_groups(), True)


def test_advantages_that_are_not_finite_are_not_trained(tmp_path: Path) -> None:
    file = tmp_path / "broken_advantage.py"
    file.write_text("import numpy as np\n\ndef broken(samples):\n    return np.full(len(samples), np.inf)\n")
    models = Models()
    outcome = PolicyStep(made_config(advantage=f"{file}:broken"), models).take(1, made_groups(), True)
    assert outcome is not None and models.calls == ["discard"]
    assert outcome.metrics["train/nonfinite_advantages"] == outcome.metrics["train/skipped_steps"] == 1.0


@pytest.mark.parametrize(("reference", "found"), [(np.nan, "reference: sequence 1"), (1e3, "advantages: sequence 0")])
def test_a_reference_that_is_not_finite_makes_no_masked_samples(reference: float, found: str) -> None:
    class Broken(Models):
        def reference_logprobs(self, batch: TrainBatch) -> FloatArray:
            values = super().reference_logprobs(batch)
            values[4] = reference  # Of the second sample; at 1e3 nats, k3 overflows.
            self.batches.append(batch)
            return values

    models, config = Broken(), made_config(kl_coefficient=0.1, kl_in="reward", kl_estimator="k3")
    with np.errstate(over="ignore"):
        outcome = PolicyStep(config, models).take(1, made_groups(), True)
    assert outcome is not None and models.calls == ["logprobs", "reference", "discard"]
    assert outcome.metrics["train/nonfinite_advantages"] == 1.0 and "advantage/kl" not in outcome.metrics
    assert str(nonfinite_inputs(models.batches[0])).startswith(found)


def test_what_is_no_advantage_is_refused() -> None:
    batch = build_batch(made_groups())
    rewards = [(1.0, np.array([1, 0, 1, 0], np.float32))]
    for shape in ((3,), (), (4, 1)):
        with pytest.raises(ConfigError, match=r"one for each sample, \(4,\), or one for each token, \(12,\)"):
            estimate_advantages(lambda _, shape=shape: np.zeros(shape), batch, rewards)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="returns of shape"):
        estimate_advantages(lambda _: Advantages(np.zeros(4), np.zeros(4)), batch, rewards)


def test_one_number_stands_for_each_sample_of_token_advantages() -> None:
    batch = build_batch(made_groups())
    values = np.array([9, 1, 2, 9, 3, 5, 9, 0, 0, 9, 7, 7], np.float32)

    def given(samples: RewardedSamples) -> Advantages:
        assert samples.sampled.sum() == 8 and samples.trained.sum() == 6 and len(samples) == 4
        return Advantages(values)

    rewards = np.concatenate([group.rewards for group in made_groups()])
    assert estimate_advantages(given, batch, [(1.0, rewards)]).tolist() == [1.5, 4.0, 0.0, 0.0]
    assert batch.advantages.tolist() == [*values[:9], 0, 0, 0], "what is masked is 0"


def test_variance_that_a_critic_explains() -> None:
    batch = build_batch(made_groups())
    batch.returns = np.arange(12, dtype=np.float32)
    batch.values = batch.returns - 3
    assert critic_metrics([batch])["critic/explained_variance"] == pytest.approx(1.0)
    assert critic_metrics([build_batch(made_groups())]) == {}
