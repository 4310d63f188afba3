"""Groups drawn in place of rejected ones: how many at most, and what a step does without them."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fakes import make_executor, numbered_items, random_script, running

from areal_x.api.errors import DataError, FailureBudgetError
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import RewardOutcome
from areal_x.engine.inference.scripted import ScriptedEngine
from areal_x.rollout.episode import EpisodeRecord
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.finish_group import GroupHooks
from areal_x.rollout.redraws import Redraws


def rejecting(*ids: int) -> GroupHooks:
    return GroupHooks(group_filter=lambda group: "chosen" if group.group_id in ids else True)


def test_redraws_are_counted_by_step() -> None:
    redraws = Redraws(2, groups_per_step=4)
    assert [redraws.may_redraw() for _ in range(3)] == [True, True, False]
    redraws.on_taken(2, 1)
    assert not redraws.may_redraw()
    redraws.on_taken(0, 1)
    assert redraws.may_redraw() and (redraws.num_taken, redraws.num_used, redraws.num_holes) == (0, 1, 2)


def test_without_a_bound_nothing_leaves_a_hole() -> None:
    redraws = Redraws(None, groups_per_step=1)
    assert all(redraws.may_redraw() for _ in range(1000))


async def test_a_step_trains_on_what_it_has() -> None:
    executor = make_executor(groups_per_step=4, max_staleness=0, max_redraws=1, hooks=rejecting(0, 1, 3))
    async with running(executor):
        groups = await executor.next_batch(0)
        assert [group.group_id for group in groups] == [2, 4]
        assert executor.redraws.num_holes == 2 and executor.counts.submitted == 5 * 2
        verdicts = executor.take_verdicts()
        assert verdicts.num_redraws == 1 and verdicts.rejected_shares == {"chosen": 3 / 5}
        await asyncio.sleep(0.01)
        assert executor.counts.submitted == 5 * 2, "a place came back before new weights were live"
        executor.on_published(1)
        assert [group.group_id for group in await executor.next_batch(1)] == [5, 6, 7, 8]
    assert executor.counts.rejected == {"chosen": 6} and executor.counts.in_flight == 0


async def test_a_step_may_have_no_group_at_all() -> None:
    executor = make_executor(groups_per_step=2, max_staleness=0, max_redraws=0, hooks=rejecting(0, 1))
    async with running(executor):
        assert await executor.next_batch(0) == []
        executor.on_published(1)
        assert len(await executor.next_batch(1)) == 2


async def test_a_filter_that_rejects_everything_ends_the_run() -> None:
    hooks = GroupHooks(group_filter=lambda group: "never")
    executor = make_executor(groups_per_step=8, max_staleness=0, max_redraws=0, hooks=hooks)
    async with running(executor):
        with pytest.raises(FailureBudgetError, match=r"256 groups in a row were rejected.*never 512"):
            for version in range(40):
                await executor.next_batch(version)
                executor.on_published(version + 1)


async def test_holes_count_when_the_data_ends() -> None:
    executor = make_executor(items=numbered_items(3), groups_per_step=3, max_redraws=0, hooks=rejecting(1))
    async with running(executor):
        assert len(await executor.next_groups(3, 3)) == 2
        with pytest.raises(DataError, match="0 groups are ready and 1 are wanted"):
            await executor.next_groups(1)


async def test_groups_that_reward_models_make_the_filter_reject_leave_holes() -> None:
    hooks = GroupHooks(
        group_filter=lambda group: group.group_id not in (1, 2),
        early_filter=lambda group: "early" if group.group_id == 0 else True,
        waits_for_models=True,
    )
    executor = make_executor(groups_per_step=4, max_staleness=0, max_redraws=1, hooks=hooks)
    trained: list[int] = []
    async with running(executor):
        while len(trained) + executor.redraws.num_holes < 4:
            missing = 4 - len(trained) - executor.redraws.num_holes
            candidates = await executor.next_candidates(missing)
            score(candidates)
            trained += [group.group_id for group in executor.settle_candidates([])]
            executor.check_conservation()
        # The early filter's rejection took the only redraw: both of the late ones left holes.
        assert trained == [3, 4] and executor.redraws.num_holes == 2 and executor.redraws.num_taken == 0
        assert executor.take_verdicts().rejected_shares == {"early": 1 / 5, "filter": 2 / 5}


def score(groups: list[TrajectoryGroup]) -> None:
    for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
        trajectory.outcome = RewardOutcome("ok", 1.0)


async def train(executor: RolloutExecutor, engine: ScriptedEngine, size: int, part: int, steps: int) -> list[list[int]]:
    """Groups of each step, taken in parts, as the trainer takes them."""
    trained: list[list[int]] = []
    for version in range(steps):
        ids: list[int] = []
        first, used = executor.redraws.num_holes, 0
        while used < size:
            holes = executor.redraws.num_holes
            groups = await executor.next_groups(min(part, size - used), min(part, size - used), version)
            used += len(groups) + executor.redraws.num_holes - holes
            ids += [group.group_id for group in groups]
            oldest = [version - executor.budget.max_staleness] if executor.budget.max_staleness is not None else []
            for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
                assert all((trajectory.versions[trajectory.loss_mask] >= bound).all() for bound in oldest)
            executor.check_conservation()
        assert used == size and len(ids) + executor.redraws.num_holes - first == size
        budget = executor.budget
        assert (
            budget.num_accepted_groups + budget.num_running_groups
            <= (budget.max_staleness or 0) * size + (version + 1) * size
        )
        trained.append(ids)
        await engine.update_weights(version + 1)
        executor.on_published(version + 1)
    return trained


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    max_redraws=st.one_of(st.none(), st.integers(0, 5)),
    reject_share=st.floats(0, 0.8),
    staleness=st.integers(0, 2),
    part=st.integers(1, 5),
)
def test_books_and_bounds_hold_whatever_is_rejected(
    seed: int, max_redraws: int | None, reject_share: float, staleness: int, part: int
) -> None:
    size, steps, records = 5, 4, list[EpisodeRecord]()

    async def run() -> None:
        engine = ScriptedEngine(random_script(seed, mean_seconds=0.0005), num_slots=8)
        executor = make_executor(
            engine,
            groups_per_step=size,
            max_staleness=staleness,
            max_redraws=max_redraws,
            max_ready_groups=None if part == size else part,
            num_slots=8,
            hooks=GroupHooks(group_filter=lambda g: random.Random(seed + g.group_id).random() >= reject_share),
            on_record=records.append,
        )
        async with running(executor):
            trained = await train(executor, engine, size, part, steps)
            if max_redraws is not None:
                # Redraws are of the steps so far, and of what is under way for those that come.
                limit = (steps + staleness) * size + (steps + 1) * max_redraws
                assert executor.counts.submitted // 2 <= limit + size
        counts = executor.counts
        assert counts.in_flight == 0 and counts.submitted == counts.ended == len(records)
        assert counts.trained == 2 * sum(map(len, trained))
        rejected = {record.group_id for record in records if record.end == "rejected"}
        assert rejected.isdisjoint(group_id for ids in trained for group_id in ids)
        if max_redraws is None:
            assert executor.redraws.num_holes == 0

    asyncio.run(run())


@pytest.mark.parametrize("max_redraws", [0, 1, 3])
def test_a_synchronous_run_repeats_with_holes(max_redraws: int) -> None:
    async def run(seed: int) -> list[list[int]]:
        engine = ScriptedEngine(random_script(seed), num_slots=8)
        hooks = GroupHooks(group_filter=lambda group: group.group_id % 3 != 0)
        executor = make_executor(engine, max_staleness=0, max_redraws=max_redraws, hooks=hooks)
        async with running(executor):
            return await train(executor, engine, 4, 4, 4)

    # Other lengths make groups end in another order.
    assert asyncio.run(run(1)) == asyncio.run(run(2))
