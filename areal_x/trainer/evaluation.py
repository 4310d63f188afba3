"""How good the policy is on held-out items: the same workflow and reward, without a staleness bound."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import RewardError, RewardOutcome
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.rollout.finish_group import ScoreGroup
from areal_x.rollout.run_episodes import FinishedEpisodes, run_episodes
from areal_x.trainer.evaluation_metrics import evaluation_metrics, version_metrics
from areal_x.trainer.reward_models import RewardModels

__all__ = ["EVALUATED_VERSION", "EvaluationSet", "Evaluator", "found_line"]

EVALUATED_VERSION = "eval/version"
"""Metric of the version that was live when an evaluation began."""


@dataclass(frozen=True)
class EvaluationSet:
    """One held-out data set, ready to be run.

    Args:
        name: in ``eval/<name>/...``.
        workflow: samples as this set is sampled, and scores with its reward.
        score_group: scores the samples of a group together, where the reward is one of whole groups.
        group_size: samples of one prompt.
        pass_at, majority_at: the k of these metrics.
        reward_key: of reward models, the one that gives the value. Default: the sum.
    """

    name: str
    items: Sequence[dict[str, Any]]
    workflow: RolloutWorkflow
    score_group: ScoreGroup
    group_size: int = 1
    pass_at: tuple[int, ...] = ()
    majority_at: tuple[int, ...] = ()
    reward_key: str | None = None

    @property
    def num_samples(self) -> int:
        """Episodes of one evaluation."""
        return len(self.items) * self.group_size


@dataclass(frozen=True)
class _Sampled:
    finished: FinishedEpisodes
    seconds: float


class Evaluator:
    """Evaluates the weights that the engine serves, and writes what it finds: all sets side by side, in synchronous
    runs, which repeat bitwise, one after another.

    Args:
        sets: what is measured; none: ``evaluate`` measures nothing.
        reward_models: what scores the groups beside the rule rewards, if anything.
        on_measured: called with the step and all metrics of each evaluation.
        on_groups: called with (step, version, name of the set, groups): samples for people.
        fixed_model: names a model that nothing trains, so that versions say nothing.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        engine: InferenceEngine,
        sets: Sequence[EvaluationSet],
        writer: RunWriter,
        display: RunDisplay,
        reward_models: RewardModels | None = None,
        on_measured: Callable[[int, dict[str, float]], None] | None = None,
        on_groups: Callable[[int, int, str, Sequence[TrajectoryGroup]], None] | None = None,
        fixed_model: str | None = None,
    ) -> None:
        self._config = config
        self._engine = engine
        self._sets = tuple(sets)
        self._writer = writer
        self._display = display
        self._reward_models = reward_models
        self._on_measured = on_measured
        self._on_groups = on_groups
        self._fixed_model = fixed_model
        self._is_lockstep = config.rollout.max_staleness == 0
        self._told: set[str] = set()

    async def evaluate(self, step: int, version: int, on_sampled: Callable[[], None] | None = None) -> dict[str, float]:
        """Measure and report; an empty result when there are no held-out items.

        Args:
            step: after which the weights of ``version`` went live.
            on_sampled: given while training goes on; called when the engine has no more to do for this evaluation.
                The sets together then ask no more of the engine than one of them would.

        Raises:
            RewardError: every score of a set failed.
        """
        if not self._sets:
            return {}
        num_items = sum(len(of_set.items) for of_set in self._sets)
        model = self._fixed_model or f"version {version}"
        self._display.phase(f"evaluating {model} on {num_items} held-out items")
        started = time.monotonic()
        sampled = await self._sample(len(self._sets) if on_sampled else 1)
        if on_sampled is not None:
            on_sampled()
        metrics: dict[str, float] = {}
        scores = await self._score_by_models(sampled)
        for of_set, of_sampled, of_scores in zip(self._sets, sampled, scores, strict=True):
            metrics |= self._measure(of_set, of_sampled, of_scores)
            if self._on_groups is not None:
                self._on_groups(step, version, of_set.name, of_sampled.finished.groups)
        self._writer.add_span("evaluation", model, started, time.monotonic())
        self._writer.write_step({"step": step, EVALUATED_VERSION: version} | metrics)
        for of_set in self._sets:
            self._display.print(f"{model}: {found_line(of_set.name, metrics)}")
        if self._on_measured is not None:
            self._on_measured(step, metrics)
        return metrics

    async def _sample(self, num_shares: int) -> list[_Sampled]:
        """Run all episodes of all sets; each set may ask for ``1 / num_shares`` of the engine."""
        slots = -(-self._config.rollout.num_slots // num_shares)
        if self._is_lockstep:  # Rounds of two sets would meet in the engine in no fixed order.
            return [await self._run(of_set, slots) for of_set in self._sets]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._run(of_set, slots), name=f"evaluate {of_set.name}") for of_set in self._sets
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def _run(self, of_set: EvaluationSet, num_slots: int) -> _Sampled:
        config, started = self._config, time.monotonic()
        finished = await run_episodes(
            engine=self._engine,
            workflow=of_set.workflow,
            items=of_set.items,
            config=dataclasses.replace(config.rollout, num_slots=num_slots),
            group_size=of_set.group_size,
            on_failure="raise" if config.reward.on_failure == "raise" else "drop",
            seed=config.seed,
            lockstep=self._is_lockstep,
            score_group=of_set.score_group,
            max_failure_rate=config.reward.max_failure_rate,
            failure_window=config.reward.failure_window,
        )
        return _Sampled(finished, time.monotonic() - started)

    def _measure(self, of_set: EvaluationSet, sampled: _Sampled, scores: Sequence[RewardOutcome]) -> dict[str, float]:
        """Metrics of one set; what is missing or failed is said."""
        name, finished = of_set.name, sampled.finished
        metrics = evaluation_metrics(
            finished.groups, name, of_set.num_samples, of_set.group_size, of_set.pass_at, of_set.majority_at
        )
        metrics |= {} if self._fixed_model else version_metrics(finished.groups, name)
        metrics[f"perf/evaluation_seconds/{name}"] = sampled.seconds
        for status, count in (finished.counts.scores + Counter(score.status for score in scores)).items():
            metrics[f"eval/{name}/outcome/{status}"] = float(count)
        failures = [*finished.counts.first_tracebacks.values(), *(score.error for score in scores if score.error)]
        if failures:
            text = failures[0].rstrip()
            if not metrics[f"eval/{name}/num_samples"]:
                raise RewardError(f"no held-out sample of {name} could be scored; the first failure was:\n{text}")
            self._display.print(f"the first of the scores that failed: {text.splitlines()[-1]}")
        self._say_what_is_missing(of_set, metrics)
        return metrics

    def _say_what_is_missing(self, of_set: EvaluationSet, metrics: dict[str, float]) -> None:
        """Once for each set: why metrics that it should have are not there."""
        names = [*(f"pass@{k}" for k in of_set.pass_at), *(f"majority@{k}" for k in of_set.majority_at)]
        missing = [name for name in names if f"eval/{of_set.name}/{name}" not in metrics]
        if not missing or of_set.name in self._told:
            return
        self._told.add(of_set.name)
        if f"eval/{of_set.name}/accuracy" not in metrics:
            why = "its reward says neither accuracy nor 1 or 0"
        elif all(f"eval/{of_set.name}/{name}_left_out" in metrics for name in missing):
            why = "too few samples of each prompt were scored"
        else:
            why = "its reward does not say which answer it found"
        self._display.print(f"{', '.join(missing)} of {of_set.name} cannot be told: {why}")

    async def _score_by_models(self, sampled: Sequence[_Sampled]) -> list[list[RewardOutcome]]:
        """Every score of every reward model, for each set; on a shared device the engine sleeps meanwhile.

        Raises:
            RewardError: a score failed and ``reward.on_failure`` is ``raise``.
        """
        if self._reward_models is None or not any(of_set.finished.groups for of_set in sampled):
            return [[] for _ in sampled]
        is_colocated = self._config.rollout.colocated
        if is_colocated:
            await self._engine.sleep()
        scores = [
            await self._reward_models.score(of_sampled.finished.groups, for_evaluation=True, key=of_set.reward_key)
            for of_set, of_sampled in zip(self._sets, sampled, strict=True)
        ]
        if is_colocated:
            await self._engine.wake_up()
        failed = next((score for of_set in scores for score in of_set if score.status != "ok"), None)
        if failed is not None and self._config.reward.on_failure == "raise":
            raise RewardError(f"the score of a held-out sample failed ({failed.status}): {failed.error}")
        return scores


def found_line(name: str, metrics: dict[str, float]) -> str:
    """What was measured of one set and what it is the mean of, for people."""
    prefix = f"eval/{name}/"
    of_set = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    num_scored, num_unscored = int(of_set["num_samples"]), int(of_set["num_unscored"])
    if not num_scored:
        return f"none of {num_unscored} held-out samples of {name} was scored"
    unscored = f" ({num_unscored} more were not scored)" if num_unscored else ""
    main = "accuracy" if "accuracy" in of_set else "reward"
    shown = [main, *(key for key in of_set if "@" in key and not key.endswith("_left_out") and key != "pass@1")]
    found = ", ".join(f"{key} {of_set[key]:.3f}" for key in shown)
    return f"{found} on {num_scored} held-out samples of {name}{unscored}"
