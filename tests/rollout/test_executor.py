from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fakes import CountingWorkflow, in_virtual_time, make_executor, numbered_items, random_script, running

from areal_x.api.engine_api import Generator
from areal_x.api.errors import DataError, PromptTooLongError
from areal_x.api.records import Trajectory
from areal_x.api.reward_api import RewardOutcome, RewardTimeoutError
from areal_x.engine.inference.scripted import ScriptedEngine
from areal_x.rollout.episode import EpisodeRecord
from areal_x.rollout.finish_group import GroupHooks


@in_virtual_time
async def test_trains_no_token_beyond_the_bound() -> None:
    engine = ScriptedEngine(random_script(1, mean_seconds=0.004), num_slots=16)
    executor = make_executor(engine, groups_per_step=8, num_slots=16, max_staleness=1)
    num_masked = 0
    async with running(executor):
        for version in range(25):
            groups = await executor.next_batch(version)
            assert [group.group_id for group in groups] == sorted(group.group_id for group in groups)
            for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
                assert (trajectory.versions[trajectory.loss_mask] >= version - 1).all()
            over_age = executor.take_over_age()
            assert max(over_age.lags) <= 1
            num_masked += over_age.num_masked_tokens
            await asyncio.sleep(0.002)
            await engine.update_weights(version + 1)
            executor.on_published(version + 1)
            executor.check_conservation()
    assert num_masked > 0, "nothing came near the bound, so this test would prove nothing"
    assert executor.counts.trained == 25 * 8 * 2
    assert executor.counts.in_flight == 0


async def test_parts_of_a_step_keep_the_bound() -> None:
    engine = ScriptedEngine(random_script(2), num_slots=8)
    executor = make_executor(engine, groups_per_step=6, num_slots=8, max_staleness=1, max_ready_groups=2)
    async with running(executor):
        for version in range(6):
            left = 6
            while left:
                groups = await executor.next_groups(min(left, 4), 1, version)
                assert 1 <= len(groups) <= min(left, 4)
                left -= len(groups)
            assert executor.budget.num_running_groups + executor.num_ready_groups <= 6
            await engine.update_weights(version + 1)
            executor.on_published(version + 1)
    assert executor.counts.trained == 6 * 6 * 2


async def test_zero_staleness_is_exactly_synchronous() -> None:
    engine = ScriptedEngine(random_script(3), num_slots=4)
    executor = make_executor(engine, groups_per_step=3, num_slots=4, max_staleness=0)
    async with running(executor):
        for version in range(5):
            groups = await executor.next_batch(version)
            # Nothing else has been started while the step's weights are being trained.
            await asyncio.sleep(0.005)
            assert executor.counts.submitted == (version + 1) * 3 * 2
            assert executor.num_running_episodes == 0
            assert [group.group_id for group in groups] == [3 * version, 3 * version + 1, 3 * version + 2]
            assert all((t.versions[t.loss_mask] == version).all() for group in groups for t in group.trajectories)
            assert executor.take_over_age().num_masked_tokens == 0
            await engine.update_weights(version + 1)
            executor.on_published(version + 1)


class Unreliable(CountingWorkflow):
    """Fails in every way that a workflow can, at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
        fate = self.random.randrange(14)
        if fate == 0:
            return None
        if fate == 1:
            raise ValueError("before")
        if fate == 2:
            raise PromptTooLongError("too long")
        if fate == 3:
            await asyncio.sleep(30)
        sample = await super().arun_episode(engine, data)
        assert isinstance(sample, Trajectory)
        if fate == 4:
            raise RewardTimeoutError("after")
        if fate == 5:
            sample.outcome = RewardOutcome("crash", error="worker died")
        if fate == 6:
            sample.outcome = RewardOutcome("not_applicable")
        if fate == 7:
            raise asyncio.CancelledError
        if fate == 8:
            sample.outcome = None
        return [sample, sample] if fate == 9 else sample


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    group_size=st.integers(1, 4),
    on_failure=st.sampled_from(["drop", "mask", "-1.0"]),
    staleness=st.integers(0, 2),
)
def test_episodes_are_conserved(seed: int, group_size: int, on_failure: str, staleness: int) -> None:
    records: list[EpisodeRecord] = []

    async def train() -> None:
        engine = ScriptedEngine(random_script(seed, mean_seconds=0.0005), num_slots=8)
        executor = make_executor(
            engine,
            Unreliable(seed),
            groups_per_step=3,
            group_size=group_size,
            max_staleness=staleness,
            on_failure=on_failure,
            num_slots=8,
            episode_timeout_seconds=0.03,
            max_failures_in_a_row=10**6,
            max_failure_rate=1.0,
            hooks=GroupHooks(group_filter=lambda group: "unlucky" if group.group_id % 5 == 0 else True),
            on_record=records.append,
        )
        async with running(executor):
            for version in range(3):
                groups = await executor.next_batch(version)
                assert len(groups) == 3
                assert all(len(group.rewards) == len(group.trajectories) > 0 for group in groups)
                for group in groups:
                    masked = np.isnan(group.rewards)
                    assert np.isfinite(group.rewards[~masked]).all() and (on_failure == "mask" or not masked.any())
                    trained = zip(group.trajectories, masked, strict=True)
                    assert not any(trajectory.loss_mask.any() for trajectory, is_masked in trained if is_masked)
                executor.check_conservation()
                await engine.update_weights(version + 1)
                executor.on_published(version + 1)
        counts = executor.counts
        assert counts.in_flight == 0
        assert counts.submitted == counts.ended == len(records)
        assert len({record.episode_id for record in records}) == len(records)
        for end, count in (
            ("trained", counts.trained),
            ("cancelled", counts.cancelled),
            ("rejected", counts.rejected.total()),
            ("failed", counts.failed.total()),
        ):
            assert sum(record.end == end for record in records) == count

    asyncio.run(train())


async def test_filter_reasons_are_counted_and_places_come_back() -> None:
    verdicts = {0: "easy", 1: False, 2: "easy"}
    executor = make_executor(
        groups_per_step=4,
        max_staleness=0,
        hooks=GroupHooks(group_filter=lambda group: verdicts.get(group.group_id, True)),
    )
    async with running(executor):
        groups = await executor.next_batch(0)
    assert [group.group_id for group in groups] == [3, 4, 5, 6]
    assert executor.counts.rejected == {"easy": 4, "filter": 2}


async def test_what_one_group_does_to_its_item_no_sibling_sees() -> None:
    class Writer(CountingWorkflow):
        async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
            assert "seen" not in data
            data["seen"] = True
            return await super().arun_episode(engine, data)

    executor = make_executor(workflow=Writer(), max_staleness=0)
    async with running(executor):
        groups = await executor.next_batch(0)
    assert groups[0].item == {"n": 0}
    assert not executor.counts.failed


async def test_data_that_ends_is_an_error_and_not_a_wait() -> None:
    executor = make_executor(items=numbered_items(5), groups_per_step=4)
    async with running(executor):
        assert len(await executor.next_batch(0)) == 4
        with pytest.raises(DataError, match=r"ended after 5 items: 1 groups are ready and 4 are wanted"):
            await executor.next_batch(0)


@pytest.mark.parametrize(("max_ready_groups", "longest_queue"), [(None, 10), (50, 4)])
@in_virtual_time
async def test_slots_are_filled_and_the_queue_stays_short(max_ready_groups: int | None, longest_queue: int) -> None:
    engine = ScriptedEngine(random_script(5, mean_seconds=60.0), num_slots=10)
    executor = make_executor(
        engine, groups_per_step=100, num_slots=10, max_staleness=3, max_ready_groups=max_ready_groups
    )
    async with running(executor):
        await asyncio.sleep(0.01)
        health = await engine.health()
        assert health.num_running == 10
        assert 0 < health.num_waiting <= longest_queue


async def test_episodes_that_wait_for_a_judge_do_not_keep_slots_empty() -> None:
    class SlowJudge(CountingWorkflow):
        async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
            sample = await super().arun_episode(engine, data)
            await asyncio.sleep(30)
            return sample

    executor = make_executor(ScriptedEngine(random_script(6, 0.001)), SlowJudge(), groups_per_step=40, num_slots=4)
    async with running(executor):
        async with asyncio.timeout(20.0):
            while executor.num_running_episodes < 40 * 2 * 3:
                await asyncio.sleep(0.01)
        assert executor.num_running_episodes == 40 * 2 * 3
    assert executor.counts.cancelled == 240


async def test_max_concurrent_bounds_the_episodes() -> None:
    executor = make_executor(groups_per_step=40, max_concurrent=7)
    most = 0
    async with running(executor):
        for version in range(2):
            for _ in range(40):
                await executor.next_groups(1, 1, version)
                most = max(most, executor.num_running_episodes)
    assert 2 <= most <= 7


async def test_spans_tell_when_what_happened() -> None:
    spans: list[tuple[str, float, float]] = []
    workflow = CountingWorkflow(lambda data: RewardOutcome("ok", 1.0, seconds=0.25, started_at=100.0))
    executor = make_executor(workflow=workflow, max_staleness=0, on_span=lambda *span: spans.append(span))
    async with running(executor):
        await executor.next_batch(0)
    assert {lane for lane, _, _ in spans} == {"episode", "generation", "scoring"}
    assert ("scoring", 100.0, 100.25) in spans
    assert all(end >= start for _, start, end in spans)
