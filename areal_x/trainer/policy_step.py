"""One step of policy optimisation, from finished groups to new weights. ::

groups ──▶ build_batch ──▶ log-probabilities of policy and reference, values of the critic, where needed
                                                     │
                                                     ▼
reference follows ◀── policy's update ◀── critic's update ◀── advantages
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import Critic, TrainEngine
from areal_x.api.records import FloatArray, TrainBatch, TrajectoryGroup
from areal_x.engine.train.advantages import kl_estimate, load_advantage
from areal_x.trainer.batch import build_batch, weighted_rewards
from areal_x.trainer.nonfinite import NonFiniteSteps, nonfinite_inputs
from areal_x.trainer.step_advantages import (
    advantage_metrics,
    critic_metrics,
    estimate_advantages,
    kl_metrics,
    sampled_tokens,
)

__all__ = ["PolicyStep", "StepOutcome"]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step did: its metrics, and one advantage for each sample, float32 [S], in the order they were taken.
    ``note``: what people should know of it, if anything."""

    metrics: dict[str, float]
    advantages: FloatArray
    note: str | None = None


class PolicyStep:
    """Takes the groups of a step, in one part or in several, and trains on them. Runs on the trainer's thread.

    Args:
        critic: the value model, where ``algorithm.advantage`` needs one.
        nonfinite: watches for steps whose numbers are not finite, if anything does.

    Raises:
        ConfigError: there is no such advantage function, or it does not take its arguments.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        train_engine: TrainEngine,
        critic: Critic | None = None,
        nonfinite: NonFiniteSteps | None = None,
    ) -> None:
        self._config = config
        self._engine = train_engine
        self._critic = critic
        self._nonfinite = nonfinite
        self._advantage = load_advantage(config.algorithm)
        self._model_weights = {name: model.weight for name, model in config.used_reward_models.items()}
        self._parts: list[TrainBatch] = []
        self._rewards: list[FloatArray] = []
        self._advantages: list[FloatArray] = []

    def take(self, step: int, groups: Sequence[TrajectoryGroup], is_last: bool) -> StepOutcome | None:
        """Add a part to the step; the last one, which may be empty, ends it and gives its outcome.

        Raises:
            NonFiniteError: too many steps in a row could not be trained.
        """
        if groups:
            self._parts.append(self._batch_with_advantages(groups))
            if self._is_in_parts and self._is_trainable:
                self._engine.accumulate(self._parts[-1])
        if not is_last:
            return None
        metrics = self._update(step)
        if self._config.rollout.colocated:
            self._engine.release_memory()
        return self._finish(step, metrics)

    @property
    def _is_in_parts(self) -> bool:
        return self._config.groups_per_part < self._config.groups_per_step

    @property
    def _is_trainable(self) -> bool:
        return all(nonfinite_inputs(part) is None for part in self._parts)

    def _batch_with_advantages(self, groups: Sequence[TrajectoryGroup]) -> TrainBatch:
        """Ask the models beside the policy what the advantage function has to know, and ask it."""
        batch, penalties = build_batch(groups), None
        if self._config.uses_reference and self._config.algorithm.kl_in == "reward":
            batch.proximal = self._engine.logprobs(batch)
            batch.reference = self._engine.reference_logprobs(batch)
            penalties = self._kl_penalties(batch)
        if self._critic is not None:
            batch.values = self._critic.values(batch)
        rewards = weighted_rewards(groups, self._config.reward, self._model_weights)
        sampled_N = sampled_tokens(batch)
        if all(given is None or np.isfinite(given[sampled_N]).all() for given in (penalties, batch.values)):
            self._advantages.append(estimate_advantages(self._advantage, batch, rewards, penalties))
        else:  # A function would take such samples for masked ones, or end the run.
            batch.advantages[sampled_N] = np.nan
            self._advantages.append(np.full(len(batch), np.nan, np.float32))
        self._rewards.append(np.concatenate([group.rewards for group in groups]))
        return batch

    def _kl_penalties(self, batch: TrainBatch) -> FloatArray:
        """Coefficient times KL divergence to the reference at each sampled token, float32 [N]; 0 elsewhere."""
        assert batch.proximal is not None and batch.reference is not None
        algorithm = self._config.algorithm
        divergence = kl_estimate(batch.proximal, batch.reference, algorithm.kl_estimator)
        return np.where(sampled_tokens(batch), algorithm.kl_coefficient * divergence, 0.0).astype(np.float32)

    def _update(self, step: int) -> dict[str, float]:
        """Update the critic, then the policy, then a reference that follows it."""
        if not self._is_trainable:
            self._engine.discard()
            return {"train/skipped_steps": 1.0, "train/nonfinite_advantages": 1.0}
        metrics: dict[str, float] = {}
        if self._critic is not None and self._parts:
            metrics = self._critic.train_step(self._parts[0])
            policy_waits = step <= self._config.critic.policy_starts_after
            metrics["critic/policy_waits"] = float(policy_waits)
            if policy_waits:
                return metrics
        # A step of nothing is skipped, and counted, by the engine.
        is_applied = self._is_in_parts or not self._parts
        metrics |= self._engine.apply() if is_applied else self._engine.train_step(self._parts[0])
        reference = self._config.reference
        if self._config.uses_reference and reference.ema_decay is not None and step % reference.update_every_steps == 0:
            self._engine.update_reference()
        return metrics

    def _finish(self, step: int, metrics: dict[str, float]) -> StepOutcome:
        """Tell how the step went, and forget it."""
        parts, self._parts = self._parts, []
        rewards, self._rewards = np.concatenate([np.zeros(0, np.float32), *self._rewards]), []
        advantages, self._advantages = np.concatenate([np.zeros(0, np.float32), *self._advantages]), []
        note = None if self._nonfinite is None else self._nonfinite.on_step(step, parts, metrics)
        metrics |= advantage_metrics(parts, advantages[~np.isnan(rewards)])
        metrics |= critic_metrics(parts) | kl_metrics(parts, self._config.algorithm.kl_estimator)
        return StepOutcome(metrics, advantages, note)
