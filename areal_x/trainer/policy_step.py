"""One step of policy optimisation, from finished groups to new weights. ::

groups ──▶ build_batch ──▶ log-probabilities of policy and reference, values of the critic, where needed
                               │
                               ▼
           update of the reference ◀── update of the policy ◀── update of the critic ◀── advantages
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from areal_x.api.advantage_api import AdvantageFunction
from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import Critic, TrainEngine
from areal_x.api.records import NOT_GENERATED, FloatArray, TrainBatch, TrajectoryGroup
from areal_x.engine.train.advantages import kl_estimate, load_advantage
from areal_x.trainer.batch import build_batch, weighted_rewards
from areal_x.trainer.step_advantages import advantage_metrics, critic_metrics, estimate_advantages, kl_metrics

__all__ = ["PolicyStep", "StepOutcome"]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step did: its metrics, and one advantage for each sample, float32 [S], in the order they were taken."""

    metrics: dict[str, float]
    advantages: FloatArray


class PolicyStep:
    """Takes the groups of a step, in one part or in several, and trains on them. Runs on the trainer's thread.

    Args:
        critic: the value model, where ``algorithm.advantage`` needs one.

    Raises:
        ConfigError: there is no such advantage function, or it does not take its arguments.
    """

    def __init__(self, config: ExperimentConfig, train_engine: TrainEngine, critic: Critic | None = None) -> None:
        self._config = config
        self._engine = train_engine
        self._critic = critic
        self._function: AdvantageFunction = load_advantage(config.algorithm)
        self._model_weights = {name: model.weight for name, model in config.used_reward_models.items()}
        self._sample_advantages: list[FloatArray] = []
        self._scored_advantages: list[FloatArray] = []
        self._trained_advantages: list[FloatArray] = []

    def take(self, step: int, groups: Sequence[TrajectoryGroup], is_last: bool) -> StepOutcome | None:
        """Add a part to the step; the last one, which may be empty, ends it and gives its outcome."""
        in_parts = self._config.groups_per_part < self._config.groups_per_step
        metrics: dict[str, float] = {}
        if groups:
            batch = build_batch(groups)
            metrics = self._add_advantages(batch, groups)
            metrics |= self._add_part(batch) if in_parts else self._train(step, batch)
        if not is_last:
            return None
        if in_parts:
            metrics = self._engine.apply() | self._update_reference(step)
        if self._config.rollout.colocated:
            self._engine.release_memory()
        return self._outcome(metrics)

    def _add_advantages(self, batch: TrainBatch, groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
        """Ask the models that stand beside the policy, then the advantage function; returns what they say."""
        algorithm, metrics = self._config.algorithm, dict[str, float]()
        penalties = None
        if self._config.uses_reference and algorithm.kl_in == "reward":
            penalties = self._kl_penalties(batch)
            metrics |= kl_metrics(batch, penalties, algorithm.kl_coefficient)
        if self._critic is not None:
            batch.values = self._critic.values(batch)
        rewards = weighted_rewards(groups, self._config.reward, self._model_weights)
        advantages_S = estimate_advantages(self._function, batch, rewards, penalties)
        is_scored_S = ~np.isnan(np.concatenate([group.rewards for group in groups]))
        self._sample_advantages.append(advantages_S)
        self._scored_advantages.append(advantages_S[is_scored_S])
        self._trained_advantages.append(batch.advantages[batch.loss_mask])
        return metrics | critic_metrics(batch)

    def _kl_penalties(self, batch: TrainBatch) -> FloatArray:
        """Coefficient times KL divergence of the policy at the start of the step to the reference, float32 [N]."""
        assert batch.versions is not None
        algorithm = self._config.algorithm
        batch.proximal = self._engine.logprobs(batch)
        batch.reference = self._engine.reference_logprobs(batch)
        divergence = kl_estimate(batch.proximal, batch.reference, algorithm.kl_estimator)
        is_sampled = batch.versions != NOT_GENERATED
        return np.where(is_sampled, algorithm.kl_coefficient * divergence, 0.0).astype(np.float32)

    def _add_part(self, batch: TrainBatch) -> dict[str, float]:
        self._engine.accumulate(batch)
        return {}

    def _train(self, step: int, batch: TrainBatch) -> dict[str, float]:
        """The updates of a whole batch: critic, then policy, then a reference that follows it."""
        if self._critic is None:
            return self._engine.train_step(batch) | self._update_reference(step)
        metrics = self._critic.train_step(batch)
        policy_waits = step <= self._config.critic.policy_starts_after
        metrics["critic/policy_waits"] = float(policy_waits)
        return metrics if policy_waits else metrics | self._engine.train_step(batch) | self._update_reference(step)

    def _update_reference(self, step: int) -> dict[str, float]:
        reference = self._config.reference
        if self._config.uses_reference and reference.ema_decay is not None and step % reference.update_every_steps == 0:
            self._engine.update_reference()
        return {}

    def _outcome(self, metrics: dict[str, float]) -> StepOutcome:
        samples, scored, trained = (
            np.concatenate([np.zeros(0, np.float32), *parts])
            for parts in (self._sample_advantages, self._scored_advantages, self._trained_advantages)
        )
        for parts in (self._sample_advantages, self._scored_advantages, self._trained_advantages):
            parts.clear()
        return StepOutcome(metrics | advantage_metrics(trained, scored), samples)
