"""Groups that reward models score: held, judged afterwards, replaced when they are rejected, and never lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rollout_fakes import CountingWorkflow, make_executor, numbered_items, running

from areal_x.api.errors import FailureBudgetError
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import RewardError, RewardOutcome
from areal_x.rollout.episode import EpisodeRecord
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.finish_group import GroupHooks


def waiting_executor(**options: Any) -> RolloutExecutor:
    names = ("early_filter", "group_filter", "post_process")
    hooks = GroupHooks(waits_for_models=True, **{name: options.pop(name) for name in names if name in options})
    return make_executor(hooks=hooks, **options)


def score(groups: list[TrajectoryGroup], value_of: Callable[[int, int], float | None]) -> list[RewardOutcome]:
    """What reward models do: ``value_of(group id, index)``; None is a score that failed."""
    outcomes = []
    for group in groups:
        for index, trajectory in enumerate(group.trajectories):
            value = value_of(group.group_id, index)
            status = "error" if value is None else "ok"
            trajectory.outcome = RewardOutcome(status, value, error=None if value is not None else "too long")  # type: ignore[arg-type]
            outcomes.append(trajectory.outcome)
    return outcomes


async def test_hooks_come_in_their_order() -> None:
    seen: list[tuple[str, float]] = []

    def early(group: TrajectoryGroup) -> bool:
        seen.append(("early", float(group.rewards[0])))
        return True

    def shaped(group: TrajectoryGroup) -> None:
        seen.append(("post", float(group.rewards[0])))
        group.rewards = group.rewards * 10

    def late(group: TrajectoryGroup) -> bool:
        seen.append(("filter", float(group.rewards[0])))
        return True

    executor = waiting_executor(
        early_filter=early, post_process=shaped, group_filter=late, groups_per_step=1, items=numbered_items(1)
    )
    async with running(executor):
        candidates = await executor.next_candidates(1)
        seen.append(("models", float(candidates[0].rewards[0])))
        (group,) = executor.settle_candidates(score(candidates, lambda *_: 3.0))
    assert seen == [("early", 1.0), ("models", 1.0), ("post", 3.0), ("filter", 30.0)]
    assert group.rewards.tolist() == [30.0, 30.0]
    assert executor.counts.trained == 2


async def test_rejected_groups_are_replaced_and_every_episode_has_one_end() -> None:
    records: list[EpisodeRecord] = []
    executor = waiting_executor(
        early_filter=lambda group: group.group_id % 3 != 0 or "dull",
        group_filter=lambda group: float(group.rewards[0]) > 0,
        on_record=records.append,
    )
    async with running(executor):
        accepted: list[TrajectoryGroup] = []
        rounds = 0
        while len(accepted) < 4:
            candidates = await executor.next_candidates(4 - len(accepted))
            accepted += executor.settle_candidates(score(candidates, lambda group_id, _: float(group_id % 2)))
            rounds += 1
    assert rounds > 1 and all(group.group_id % 2 and group.group_id % 3 for group in accepted)
    assert executor.counts.rejected["dull"] >= 4 and executor.counts.rejected["filter"] >= 2
    assert executor.counts.trained == 8
    assert len({record.episode_id for record in records}) == len(records) == executor.counts.submitted
    executor.check_conservation()


async def test_places_of_rejected_groups_are_free_again() -> None:
    executor = waiting_executor(max_staleness=0, group_filter=lambda group: float(group.rewards[0]) > 0, lockstep=False)
    async with running(executor):
        first = await executor.next_candidates(4)
        assert executor.budget.num_admissible == 0
        assert executor.settle_candidates(score(first, lambda *_: 0.0)) == []
        second = await executor.next_candidates(4)
        assert len(executor.settle_candidates(score(second, lambda *_: 1.0))) == 4
        assert executor.budget.num_accepted_groups == 4


async def test_a_failed_score_follows_the_failure_policy() -> None:
    def first_fails(group_id: int, index: int) -> float | None:
        return None if index == 0 else float(index)

    async def rewards_with(policy: str | float) -> tuple[RolloutExecutor, list[list[float]]]:
        executor = waiting_executor(group_size=3, on_failure=policy)
        async with running(executor):
            groups = executor.settle_candidates(score(await executor.next_candidates(2), first_fails))
        executor.check_conservation()
        return executor, [group.rewards.tolist() for group in groups]

    dropped, rewards = await rewards_with("drop")
    assert rewards == [[1.0, 2.0]] * 2 and dropped.counts.failed["reward_error"] == 2
    assert dropped.counts.scores["error"] == 2
    masked, rewards = await rewards_with("mask")
    assert [row[:2] for row in rewards] == [[1.0, 2.0]] * 2 and all(np.isnan(row[2]) for row in rewards)
    assert masked.counts.failed["reward_error"] == 2
    number, rewards = await rewards_with(-5.0)
    assert rewards == [[-5.0, 1.0, 2.0]] * 2 and not number.counts.failed
    with pytest.raises(RewardError, match="too long"):
        await rewards_with("raise")


async def test_a_group_that_failures_make_too_small_is_rejected() -> None:
    executor = waiting_executor()
    async with running(executor):
        candidates = await executor.next_candidates(1)
        assert executor.settle_candidates(score(candidates, lambda _, index: None if index else 1.0)) == []
    assert executor.counts.failed["reward_error"] == 1 and executor.counts.rejected["group_too_small"] == 1


async def test_scores_that_all_fail_end_the_run_with_the_first_reason() -> None:
    executor = waiting_executor(max_failure_rate=0.5, failure_window=8)
    async with running(executor):
        with pytest.raises(FailureBudgetError, match=r"of the last 8 scores failed[\s\S]*too long"):
            executor.settle_candidates(score(await executor.next_candidates(4), lambda *_: None))


async def test_groups_that_are_held_when_the_run_ends_are_cancelled() -> None:
    executor = waiting_executor(workflow=CountingWorkflow())
    async with running(executor):
        await executor.next_candidates(2)
        executor.check_conservation()
    assert executor.counts.cancelled == executor.counts.submitted >= 4


async def test_an_error_in_one_verdict_loses_no_group() -> None:
    """The groups before it were accepted, but nobody has got them."""
    executor = waiting_executor(on_failure="raise")
    async with running(executor):
        candidates = await executor.next_candidates(3)
        last = candidates[-1].group_id
        with pytest.raises(RewardError, match="too long"):
            executor.settle_candidates(score(candidates, lambda group_id, _: None if group_id == last else 1.0))
        executor.check_conservation()
    assert executor.counts.cancelled == executor.counts.submitted
    executor.check_conservation()
