"""A finite set of episodes, run to the end: evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from areal_x.api.config import RolloutConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.records import TrajectoryGroup
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.rollout.counts import EpisodeCounts
from areal_x.rollout.episode import EpisodeRecord
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.finish_group import GroupHooks, ScoreGroup

__all__ = ["FinishedEpisodes", "run_episodes"]


@dataclass(frozen=True, slots=True)
class FinishedEpisodes:
    """Groups in the order of their items (``item_index``), and how all episodes ended.

    An item without any scored episode has no group: it is in ``counts.failed`` or ``counts.rejected``.
    """

    groups: list[TrajectoryGroup]
    counts: EpisodeCounts


async def run_episodes(
    *,
    engine: InferenceEngine,
    workflow: RolloutWorkflow,
    items: Iterable[Mapping[str, Any]],
    config: RolloutConfig,
    group_size: int = 1,
    on_failure: str | float = "drop",
    seed: int = 0,
    lockstep: bool = False,
    score_group: ScoreGroup | None = None,
    max_failure_rate: float = 0.5,
    failure_window: int = 256,
    on_record: Callable[[EpisodeRecord], None] | None = None,
    on_group: Callable[[TrajectoryGroup], None] | None = None,
) -> FinishedEpisodes:
    """Run ``group_size`` episodes of each item on the machinery of training, without a staleness bound.

    Args:
        config: slots, deadlines and failure limits; its group size and bound are not used.
        lockstep: send requests in rounds, so that the evaluation repeats bitwise.
        score_group: scores the samples of a group together, where the reward is one of whole groups.
        on_record: called with each episode's record.
        on_group: called with each group as it finishes.

    Raises:
        FailureBudgetError: too many episodes or scores failed.
        EngineDiedError: the engine is gone.
    """
    all_items = [dict(item) for item in items]
    if not all_items:
        return FinishedEpisodes([], EpisodeCounts())
    executor = RolloutExecutor(
        engine=engine,
        workflow=workflow,
        items=iter(all_items),
        config=replace(config, group_size=group_size),
        groups_per_step=len(all_items),
        on_failure=on_failure,
        seed=seed,
        hooks=GroupHooks(score_group),
        max_failure_rate=max_failure_rate,
        failure_window=failure_window,
        min_samples=1,
        bounded=False,
        lockstep=lockstep,
        on_record=on_record,
        on_group=on_group,
    )
    run = asyncio.get_running_loop().create_task(executor.run(), name="evaluation rollouts")
    try:
        groups = await executor.remaining_groups()
    finally:
        await executor.stop()
        await asyncio.gather(run, return_exceptions=True)
    run.result()
    return FinishedEpisodes(groups, executor.counts)
