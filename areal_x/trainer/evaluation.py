"""How good the policy is on held-out items: the same workflow and reward, without a staleness bound."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_model_checks import RULE_PART
from areal_x.api.reward_records import RewardError, RewardOutcome
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.rollout.finish_group import ScoreGroup
from areal_x.rollout.run_episodes import run_episodes
from areal_x.trainer.reward_models import RewardModels

__all__ = ["Evaluator", "accuracy", "evaluation_metrics"]

_ROUNDING = 1e-6


def accuracy(outcomes: Sequence[RewardOutcome]) -> float | None:
    """The mean of the part ``accuracy``; without one, of a (rule) reward that is 1 or 0. None: no such thing."""
    parts = [outcome.parts["accuracy"] for outcome in outcomes if "accuracy" in outcome.parts]
    if parts:
        return float(np.mean(parts))
    values = np.array([outcome.parts.get(RULE_PART, outcome.value) for outcome in outcomes])
    is_zero_or_one = np.minimum(np.abs(values), np.abs(values - 1.0)) <= _ROUNDING
    return float(np.mean(values)) if is_zero_or_one.all() else None


def evaluation_metrics(groups: Sequence[TrajectoryGroup], dataset: str, num_asked: int) -> dict[str, float]:
    """Accuracy and mean reward over the episodes that were scored; the others are counted, not taken for wrong answers.

    An episode of several trajectories counts once, by its last. There is an accuracy where the reward reports one, or
    is 1 or 0.

    Args:
        groups: what the episodes gave.
        dataset: the name in ``eval/<dataset>/...``.
        num_asked: episodes that were started.
    """
    prefix = f"eval/{dataset}"
    last_of_episode = {t.episode_id: t for group in groups for t in group.trajectories}
    scored = [t.outcome for t in last_of_episode.values() if t.outcome is not None and t.outcome.status == "ok"]
    metrics = {
        f"{prefix}/{part}": float(np.mean([outcome.parts[part] for outcome in scored if part in outcome.parts]))
        for part in sorted({part for outcome in scored for part in outcome.parts})
    }
    metrics |= {f"{prefix}/num_samples": float(len(scored)), f"{prefix}/num_unscored": float(num_asked - len(scored))}
    if scored:
        metrics[f"{prefix}/reward"] = float(np.mean([outcome.value for outcome in scored]))
        right = accuracy(scored)
        metrics |= {} if right is None else {f"{prefix}/accuracy": right}
    return metrics


class Evaluator:
    """Evaluates the weights that the engine serves, and writes what it finds.

    Args:
        items: the held-out items; none: ``evaluate`` measures nothing.
        dataset: their name in metrics.
        score_group: scores the samples of a group together, where the reward is one of whole groups.
        reward_models: what scores the groups beside the rule rewards, if anything.
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
        reward_models: RewardModels | None = None,
    ) -> None:
        self._config = config
        self._engine = engine
        self._workflow = workflow
        self._items = items[: config.evaluation.limit]
        self._dataset = dataset
        self._score_group = score_group
        self._writer = writer
        self._display = display
        self._reward_models = reward_models

    async def evaluate(self, step: int, version: int) -> dict[str, float]:
        """Measure and report; an empty result when there are no held-out items.

        Raises:
            RewardError: every score failed.
        """
        if not self._items:
            return {}
        self._display.phase(f"evaluating version {version} on {len(self._items)} held-out items")
        started = time.monotonic()
        metrics = await self.measure(self._items)
        self._writer.add_span("evaluation", f"version {version}", started, time.monotonic())
        self._writer.write_step({"step": step, "version": version} | metrics)
        self._display.print(f"version {version}: {self._found(metrics)}")
        return metrics

    def _found(self, metrics: dict[str, float]) -> str:
        """What was measured and what it is the mean of, for people."""
        prefix = f"eval/{self._dataset}"
        num_scored, num_unscored = (int(metrics[f"{prefix}/{name}"]) for name in ("num_samples", "num_unscored"))
        if not num_scored:
            return f"none of {num_unscored} held-out samples of {self._dataset} was scored"
        unscored = f" ({num_unscored} more were not scored)" if num_unscored else ""
        name = "accuracy" if f"{prefix}/accuracy" in metrics else "reward"
        return f"{name} {metrics[f'{prefix}/{name}']:.3f} on {num_scored} held-out samples of {self._dataset}{unscored}"

    async def measure(self, items: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics of the served weights on ``items``."""
        group_size = self._config.evaluation.group_size
        finished = await run_episodes(
            engine=self._engine,
            workflow=self._workflow,
            items=items,
            config=self._config.rollout,
            group_size=group_size,
            on_failure="raise" if self._config.reward.on_failure == "raise" else "drop",
            seed=self._config.seed,
            lockstep=self._config.rollout.max_staleness == 0,
            score_group=self._score_group,
            max_failure_rate=self._config.reward.max_failure_rate,
            failure_window=self._config.reward.failure_window,
        )
        scores = await self._score_by_models(finished.groups)
        metrics = evaluation_metrics(finished.groups, self._dataset, len(items) * group_size)
        for status, count in (finished.counts.scores + Counter(score.status for score in scores)).items():
            metrics[f"eval/{self._dataset}/outcome/{status}"] = float(count)
        failures = [*finished.counts.first_tracebacks.values(), *(score.error for score in scores if score.error)]
        if failures:
            text = failures[0].rstrip()
            if not metrics[f"eval/{self._dataset}/num_samples"]:
                raise RewardError(f"no held-out sample could be scored; the first failure was:\n{text}")
            self._display.print(f"the first of the scores that failed: {text.splitlines()[-1]}")
        return metrics

    async def _score_by_models(self, groups: Sequence[TrajectoryGroup]) -> list[RewardOutcome]:
        """Every score of every reward model; on a shared device the engine sleeps meanwhile.

        Raises:
            RewardError: a score failed and ``reward.on_failure`` is ``raise``.
        """
        if self._reward_models is None or not groups:
            return []
        is_colocated = self._config.rollout.colocated
        if is_colocated:
            await self._engine.sleep()
        scores = await self._reward_models.score(groups, for_evaluation=True)
        self._reward_models.take_metrics()  # Of a step they would say something else.
        if is_colocated:
            await self._engine.wake_up()
        failed = next((score for score in scores if score.status != "ok"), None)
        if failed is not None and self._config.reward.on_failure == "raise":
            raise RewardError(f"the score of a held-out sample failed ({failed.status}): {failed.error}")
        return scores
