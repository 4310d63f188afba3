"""One step of policy optimisation, from finished groups to new weights. Runs on the trainer's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import Critic, TrainEngine
from areal_x.api.records import FloatArray, TrajectoryGroup
from areal_x.trainer.batch import build_batch

__all__ = ["PolicyStep", "StepOutcome"]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step did: its metrics, and one advantage for each sample, float32 [S], in the order they were taken."""

    metrics: dict[str, float]
    advantages: FloatArray


class PolicyStep:
    """Takes the groups of a step, in one part or in several, and trains on them."""

    def __init__(self, config: ExperimentConfig, train_engine: TrainEngine, critic: Critic | None = None) -> None:
        self._config = config
        self._engine = train_engine
        self._critic = critic
        self._model_weights = {name: model.weight for name, model in config.used_reward_models.items()}
        self._advantages: list[FloatArray] = []

    def take(self, step: int, groups: Sequence[TrajectoryGroup], is_last: bool) -> StepOutcome | None:
        """Add a part to the step; the last one, which may be empty, ends it and gives its outcome."""
        config, metrics = self._config, {}
        in_parts = config.groups_per_part < config.groups_per_step
        if groups:
            batch, advantages_S = build_batch(groups, config.algorithm, config.reward, self._model_weights)
            self._advantages.append(advantages_S)
            if in_parts:
                self._engine.accumulate(batch)
            else:
                metrics = self._engine.train_step(batch)
        if not is_last:
            return None
        if in_parts or not groups:  # A step of nothing is skipped, and counted, by the engine.
            metrics = self._engine.apply()
        if config.rollout.colocated:
            self._engine.release_memory()
        advantages, self._advantages = self._advantages, []
        return StepOutcome(metrics, np.concatenate(advantages) if advantages else np.zeros(0, np.float32))
