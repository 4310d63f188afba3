"""Rewards of whole groups, and what else is done to a complete group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rollout_fakes import CountingWorkflow, in_virtual_time, make_executor, numbered_items, random_script, running

from areal_x.api.errors import DataError, FailureBudgetError
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_base import PendingScore
from areal_x.api.reward_records import RewardOutcome, RewardSample
from areal_x.engine.inference.scripted import ScriptedEngine
from areal_x.rollout.finish_group import GroupHooks


def waiting(data: dict[str, Any]) -> RewardOutcome:
    return RewardOutcome("pending", pending=PendingScore(RewardSample("p", "c", data=data)))


async def by_rank(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
    await asyncio.sleep(0.001)
    return [RewardOutcome("ok", float(rank), started_at=1.0) for rank in range(len(outcomes))]


def scored_together(score: Any, **options: Any) -> Any:
    return make_executor(workflow=CountingWorkflow(waiting), hooks=GroupHooks(score), **options)


async def test_a_group_is_scored_once_all_its_samples_are_there() -> None:
    executor = scored_together(by_rank, group_size=3)
    async with running(executor):
        groups = await executor.next_batch()
    assert [group.rewards.tolist() for group in groups] == [[0.0, 1.0, 2.0]] * 4
    assert all(t.outcome.status == "ok" for group in groups for t in group.trajectories)
    executor.check_conservation()


async def test_a_failed_score_of_a_group_is_counted_and_dropped() -> None:
    async def second_fails(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        return [RewardOutcome("ok", 1.0), RewardOutcome("timeout", error="too slow"), RewardOutcome("ok", 0.0)]

    executor = scored_together(second_fails, group_size=3)
    async with running(executor):
        groups = await executor.next_batch()
    assert [group.rewards.tolist() for group in groups] == [[1.0, 0.0]] * 4
    assert executor.counts.failed["reward_timeout"] == executor.counts.scores["timeout"] >= 4
    executor.check_conservation()


async def test_what_the_scoring_raises_ends_the_run() -> None:
    async def broken(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        raise KeyError("pool")

    executor = scored_together(broken)
    async with running(executor):
        with pytest.raises(KeyError, match="pool"):
            await executor.next_batch()


async def test_failures_of_groups_spend_the_budget() -> None:
    async def fails(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        return [RewardOutcome("error", error="Traceback: mine") for _ in outcomes]

    executor = scored_together(fails, max_failure_rate=0.5, failure_window=8)
    async with running(executor):
        with pytest.raises(FailureBudgetError, match=r"of the last 8 scores failed[\s\S]*Traceback: mine"):
            await executor.next_batch()


async def test_a_group_that_is_being_scored_is_not_lost_at_the_end_of_the_items() -> None:
    release = asyncio.Event()

    async def slow(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        await release.wait()
        return await by_rank(outcomes)

    executor = scored_together(slow, items=numbered_items(2), groups_per_step=2)
    async with running(executor):
        batch = asyncio.create_task(executor.next_batch())
        await asyncio.sleep(0.05)
        assert not batch.done()
        executor.check_conservation()
        release.set()
        assert len(await batch) == 2


async def test_stopping_cancels_what_is_being_scored() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return []

    executor = scored_together(endless)
    async with running(executor):
        await started.wait()
    assert cancelled.is_set()
    assert executor.counts.cancelled == executor.counts.submitted


async def test_a_group_reward_without_a_scorer_says_so() -> None:
    executor = make_executor(workflow=CountingWorkflow(waiting))
    async with running(executor):
        with pytest.raises(RuntimeError, match="no score_group"):
            await executor.next_batch()


async def test_post_processing_comes_before_the_filter() -> None:
    def doubled(group: TrajectoryGroup) -> None:
        group.raw_rewards, group.rewards = group.rewards, group.rewards * 2

    def large(group: TrajectoryGroup) -> bool:
        return bool(group.rewards.max() > 3)

    executor = make_executor(
        workflow=CountingWorkflow(waiting), hooks=GroupHooks(by_rank, doubled, large), group_size=3
    )
    async with running(executor):
        groups = await executor.next_batch()
    assert groups[0].rewards.tolist() == [0.0, 2.0, 4.0]
    assert groups[0].raw_rewards is not None and groups[0].raw_rewards.tolist() == [0.0, 1.0, 2.0]
    assert not executor.counts.rejected


@pytest.mark.parametrize("late", [0.0, 0.05])
async def test_rounds_of_synchronous_runs_wait_for_the_scores_of_groups(late: float) -> None:
    """Two of four groups are rejected, one of them ``late``: both replacements go out in one round all the same."""
    rounds: list[int] = []
    num_scored = 0

    class CountingEngine(ScriptedEngine):
        async def agenerate_batch(self, requests: Any) -> Any:
            rounds.append(len(requests))
            return await super().agenerate_batch(requests)

    async def score(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        nonlocal num_scored
        num_scored += 1
        is_bad, is_late = num_scored <= 2, num_scored == 2
        if is_late:
            await asyncio.sleep(late)
        return [RewardOutcome("ok", 0.0 if is_bad else float(rank)) for rank in range(len(outcomes))]

    executor = scored_together(score, engine=CountingEngine(random_script(0)), max_staleness=0, groups_per_step=4)
    executor._finisher._hooks = GroupHooks(score, None, lambda group: bool(group.rewards.max() > 0))
    async with running(executor):
        groups = await executor.next_batch()
    assert len(groups) == 4
    assert rounds[:2] == [8, 4]


@in_virtual_time
async def test_a_scorer_that_never_answers_is_a_timeout() -> None:
    async def endless(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        await asyncio.Event().wait()
        return []

    executor = scored_together(endless, episode_timeout_seconds=0.1, max_failure_rate=0.5, failure_window=8)
    async with running(executor):
        with pytest.raises(FailureBudgetError, match=r"episode_timeout_seconds=0\.1"):
            await executor.next_batch()


async def test_samples_that_wait_for_their_score_hold_their_places() -> None:
    most = 0

    async def slow(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        nonlocal most
        most = max(most, executor.num_running_episodes)
        await asyncio.sleep(0.02)
        return await by_rank(outcomes)

    executor = scored_together(slow, max_concurrent=4, groups_per_step=16)
    async with running(executor):
        await executor.next_batch()
        assert 2 <= most <= 4
    executor.check_conservation()


async def test_a_group_that_is_too_small_is_not_scored() -> None:
    calls = 0

    async def counted(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        nonlocal calls
        calls += 1
        return await by_rank(outcomes)

    seen: set[int] = set()

    def half_failed(data: dict[str, Any]) -> RewardOutcome:
        if data["n"] in seen:
            return RewardOutcome("not_applicable")
        seen.add(data["n"])
        return waiting(data)

    executor = make_executor(
        workflow=CountingWorkflow(half_failed), hooks=GroupHooks(counted), items=numbered_items(6), groups_per_step=6
    )
    async with running(executor):
        with pytest.raises(DataError):
            await executor.next_batch()
    assert calls == 0
    assert executor.counts.rejected["group_too_small"] == executor.counts.rejected["reward_not_applicable"] == 6


@pytest.mark.parametrize(
    ("verdict", "keeps"), [(np.bool_(True), True), (1, True), (np.bool_(False), False), ("", False)]
)
async def test_verdicts_of_filters_are_true_false_or_a_reason(verdict: Any, keeps: bool) -> None:
    executor = make_executor(hooks=GroupHooks(group_filter=lambda group: verdict), items=numbered_items(4))
    async with running(executor):
        if keeps:
            assert len(await executor.next_batch()) == 4
        else:
            with pytest.raises(DataError):
                await executor.next_batch()
            assert executor.counts.rejected["filter"] == 8
