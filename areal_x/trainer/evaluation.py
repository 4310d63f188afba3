"""How good the policy is on held-out items: the same workflow and reward, without a staleness bound."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.records import Trajectory, TrajectoryGroup
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.rollout.finish_group import ScoreGroup
from areal_x.rollout.run_episodes import run_episodes

__all__ = ["Evaluator", "evaluation_metrics", "is_correct"]

FULL_REWARD = 1.0


def is_correct(trajectory: Trajectory) -> float:
    """The reward's part ``accuracy`` where it reports one, else whether the sample got the full reward."""
    outcome = trajectory.outcome
    assert outcome is not None and outcome.value is not None
    return outcome.parts.get("accuracy", float(outcome.value >= FULL_REWARD))


def evaluation_metrics(groups: Sequence[TrajectoryGroup], dataset: str, num_asked: int) -> dict[str, float]:
    """Accuracy and mean reward over the episodes that were scored; the others are counted, not taken for wrong answers.

    An episode of several trajectories counts once, by its last.

    Args:
        groups: what the episodes gave.
        dataset: the name in ``eval/<dataset>/...``.
        num_asked: episodes that were started.
    """
    prefix = f"eval/{dataset}"
    last_of_episode = {t.episode_id: t for group in groups for t in group.trajectories}
    scored = [t for t in last_of_episode.values() if t.outcome is not None and t.outcome.status == "ok"]
    metrics = {f"{prefix}/num_samples": float(len(scored)), f"{prefix}/num_unscored": float(num_asked - len(scored))}
    if not scored:
        return metrics
    metrics[f"{prefix}/accuracy"] = float(np.mean([is_correct(trajectory) for trajectory in scored]))
    metrics[f"{prefix}/reward"] = float(np.mean([t.outcome.value for t in scored if t.outcome is not None]))
    parts = {part for trajectory in scored if trajectory.outcome for part in trajectory.outcome.parts}
    for part in sorted(parts - {"accuracy"}):
        values = [t.outcome.parts[part] for t in scored if t.outcome is not None and part in t.outcome.parts]
        metrics[f"{prefix}/{part}"] = float(np.mean(values))
    return metrics


class Evaluator:
    """Evaluates the weights that the engine serves, and writes what it finds.

    Args:
        items: the held-out items; none: ``evaluate`` measures nothing.
        dataset: their name in metrics.
        score_group: scores the samples of a group together, where the reward is one of whole groups.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        engine: InferenceEngine,
        workflow: RolloutWorkflow,
        items: Sequence[dict[str, Any]],
        dataset: str,
        score_group: ScoreGroup,
        writer: RunWriter,
        display: RunDisplay,
    ) -> None:
        self._config = config
        self._engine = engine
        self._workflow = workflow
        self._items = items[: config.evaluation.limit]
        self._dataset = dataset
        self._score_group = score_group
        self._writer = writer
        self._display = display

    async def evaluate(self, step: int, version: int) -> dict[str, float]:
        """Measure and report; an empty result when there are no held-out items."""
        if not self._items:
            return {}
        self._display.phase(f"evaluating version {version} on {len(self._items)} held-out items")
        started = time.monotonic()
        metrics = await self.measure(self._items)
        self._writer.add_span("evaluation", f"version {version}", started, time.monotonic())
        self._writer.write_step({"step": step, "version": version} | metrics)
        self._display.print(f"version {version}: {self._found(metrics)} of {self._dataset}")
        return metrics

    def _found(self, metrics: dict[str, float]) -> str:
        """Accuracy and what it is the mean of, for people."""
        prefix = f"eval/{self._dataset}"
        num_scored, num_unscored = (int(metrics[f"{prefix}/{name}"]) for name in ("num_samples", "num_unscored"))
        if not num_scored:
            return f"none of {num_unscored} held-out samples was scored"
        unscored = f" ({num_unscored} more were not scored)" if num_unscored else ""
        return f"accuracy {metrics[f'{prefix}/accuracy']:.3f} on {num_scored} held-out samples{unscored}"

    async def measure(self, items: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics of the served weights on ``items``."""
        group_size = self._config.evaluation.group_size
        finished = await run_episodes(
            engine=self._engine,
            workflow=self._workflow,
            items=items,
            config=self._config.rollout,
            group_size=group_size,
            seed=self._config.seed,
            lockstep=self._config.rollout.max_staleness == 0,
            score_group=self._score_group,
            max_failure_rate=self._config.reward.max_failure_rate,
            failure_window=self._config.reward.failure_window,
        )
        return evaluation_metrics(finished.groups, self._dataset, len(items) * group_size)
