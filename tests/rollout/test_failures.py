from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rollout_fakes import CountingWorkflow, in_virtual_time, make_executor, numbered_items, random_script, running

from areal_x.api.engine_api import Generator
from areal_x.api.errors import ConfigError, EngineDiedError, FailureBudgetError
from areal_x.api.records import Trajectory
from areal_x.api.reward_api import RewardError, RewardOutcome
from areal_x.engine.inference.scripted import ScriptedCompletion, ScriptedEngine
from areal_x.rollout.failure_budget import FailureBudget
from areal_x.rollout.finish_group import GroupHooks
from areal_x.rollout.groups import FailurePolicy


class EachInItsWay(CountingWorkflow):
    """Episode number k (in order of start) gets outcome k of the list, good after that."""

    def __init__(self, *outcomes: RewardOutcome) -> None:
        super().__init__(lambda data: self.outcomes.pop(0) if self.outcomes else RewardOutcome("ok", 9.0))
        self.outcomes = list(outcomes)


OK_1, OK_3 = RewardOutcome("ok", 1.0), RewardOutcome("ok", 3.0)
CRASH = RewardOutcome("crash", error="the worker died of signal 9")


async def test_drop_takes_failed_scores_out_of_the_group() -> None:
    executor = make_executor(
        workflow=EachInItsWay(OK_1, CRASH, OK_3), groups_per_step=1, group_size=3, max_staleness=0, on_failure="drop"
    )
    async with running(executor):
        (group,) = await executor.next_batch(0)
    assert group.rewards.tolist() == [1.0, 3.0]
    assert executor.counts.failed == {"reward_crash": 1}
    assert executor.counts.scores["crash"] == 1
    assert executor.counts.first_tracebacks == {"reward_crash": "the worker died of signal 9"}
    assert executor.counts.trained == 2


async def test_a_group_with_fewer_than_two_scores_is_rejected_and_replaced() -> None:
    executor = make_executor(
        workflow=EachInItsWay(OK_1, CRASH, CRASH), groups_per_step=1, group_size=3, max_staleness=0
    )
    async with running(executor):
        (group,) = await executor.next_batch(0)
    assert group.group_id == 1
    assert executor.counts.failed == {"reward_crash": 2}
    assert executor.counts.rejected == {"group_too_small": 1}


async def test_mask_keeps_the_sample_out_of_loss_and_baseline() -> None:
    executor = make_executor(
        workflow=EachInItsWay(OK_1, CRASH, OK_3), groups_per_step=1, group_size=3, max_staleness=0, on_failure="mask"
    )
    async with running(executor):
        (group,) = await executor.next_batch(0)
    np.testing.assert_array_equal(group.rewards, [1.0, 3.0, np.nan])
    assert [bool(trajectory.loss_mask.any()) for trajectory in group.trajectories] == [True, True, False]
    assert executor.counts.trained == 2
    assert executor.counts.failed == {"reward_crash": 1}


async def test_a_number_stands_for_a_failed_score_and_the_failure_is_still_counted() -> None:
    executor = make_executor(
        workflow=EachInItsWay(OK_1, CRASH), groups_per_step=1, group_size=2, max_staleness=0, on_failure="-0.5"
    )
    async with running(executor):
        (group,) = await executor.next_batch(0)
    assert group.rewards.tolist() == [1.0, -0.5]
    assert executor.counts.trained == 2
    assert executor.counts.scores["crash"] == 1


async def test_raise_ends_the_run_with_the_score_s_own_words() -> None:
    executor = make_executor(workflow=EachInItsWay(OK_1, CRASH), groups_per_step=1, max_staleness=0, on_failure="raise")
    async with running(executor) as run:
        with pytest.raises(RewardError, match="signal 9"):
            await executor.next_batch(0)
        with pytest.raises(RewardError, match="signal 9"):
            await run
    assert executor.counts.in_flight == 0


@pytest.mark.parametrize("value", ["skip", "nan", "inf", ""])
def test_bad_on_failure_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match=r"reward\.on_failure"):
        FailurePolicy.parse(value)


class Failing(CountingWorkflow):
    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
        await asyncio.sleep(0)
        raise KeyError("no column called answer")


@pytest.mark.parametrize("staleness", [0, 2])
async def test_a_workflow_that_always_fails_stops_the_run_with_the_first_traceback(staleness: int) -> None:
    executor = make_executor(workflow=Failing(), max_failures_in_a_row=10, max_staleness=staleness)
    async with running(executor) as run:
        with pytest.raises(
            FailureBudgetError, match=r"(?s)10 episodes failed in a row.*Traceback.*no column called answer"
        ):
            await executor.next_batch(0)
        with pytest.raises(FailureBudgetError):
            await run
    assert executor.counts.failed == {"KeyError": 10}
    assert executor.counts.in_flight == 0


async def test_rewards_that_all_fail_stop_the_run() -> None:
    executor = make_executor(workflow=CountingWorkflow(lambda data: CRASH), max_failure_rate=0.5, failure_window=20)
    async with running(executor):
        with pytest.raises(FailureBudgetError, match=r"(?s)11 of the last 20 scores failed.*signal 9"):
            await executor.next_batch(0)


def test_a_good_episode_between_failures_keeps_the_run_alive() -> None:
    budget = FailureBudget(3, 0.5, 4)
    for _ in range(20):
        budget.on_episode("a")
        budget.on_episode("b")
        budget.on_episode(None)
        budget.on_score("c")
        budget.on_score(None)
    assert budget.first_failure == "a"
    budget.on_episode("d")
    budget.on_episode("d")
    with pytest.raises(FailureBudgetError):
        budget.on_episode("d")


async def test_a_run_that_rejects_everything_stops_and_says_why() -> None:
    executor = make_executor(hooks=GroupHooks(group_filter=lambda group: "too_easy"), groups_per_step=2)
    async with running(executor):
        with pytest.raises(FailureBudgetError, match=r"256 groups in a row were rejected.*too_easy 512"):
            await executor.next_batch(0)


@in_virtual_time
async def test_an_episode_that_hangs_is_cancelled_at_its_deadline() -> None:
    class Stubborn(CountingWorkflow):
        async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
            if data["n"] == 0:
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.2)  # holds on to its cancellation
                    raise
            return await super().arun_episode(engine, data)

    executor = make_executor(
        workflow=Stubborn(), groups_per_step=2, group_size=1, max_staleness=0, episode_timeout_seconds=0.1
    )
    started = time.monotonic()
    async with running(executor):
        groups = await executor.next_batch(0)
        assert time.monotonic() - started < 0.25
    assert [group.group_id for group in groups] == [1, 2]
    assert executor.counts.failed == {"episode_timeout": 1}
    assert executor.counts.first_tracebacks["episode_timeout"] == (
        "episode 0-0 took too long; see rollout.episode_timeout_seconds=0.1"
    )


async def test_finished_episodes_are_not_kept_until_they_come_due() -> None:
    class FirstHangs(CountingWorkflow):
        async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Any:
            if data["n"] == 0:
                await asyncio.sleep(30)
            return await super().arun_episode(engine, data)

    records: list[Any] = []
    executor = make_executor(
        ScriptedEngine(lambda request: ScriptedCompletion([1])), FirstHangs(), on_record=records.append
    )
    most = 0
    async with running(executor):
        for version in range(30):
            await executor.next_batch(version)
            most = max(most, len(executor._deadlines._queue))
            executor.on_published(version + 1)
    assert len(records) >= 240
    assert most <= executor.num_running_episodes + 2 * 4 * 4


async def test_an_accounted_episode_holds_no_trajectories() -> None:
    kept: list[Any] = []
    executor = make_executor()
    close = executor._ledger.close
    executor._ledger.close = lambda episode, *rest: (close(episode, *rest), kept.append(episode))[0]  # type: ignore
    async with running(executor):
        groups = await executor.next_batch(0)
    assert all(group.trajectories for group in groups)
    assert len(kept) >= 8 and all(episode.trajectories is None for episode in kept)


@in_virtual_time
async def test_a_deadline_frees_the_engine_s_slot() -> None:
    engine = ScriptedEngine(random_script(0, mean_seconds=60.0), num_slots=2)
    executor = make_executor(engine, num_slots=2, groups_per_step=1, group_size=2, episode_timeout_seconds=0.05)
    async with running(executor):
        await asyncio.sleep(0.12)
        health = await engine.health()
        assert health.num_running == 2
        assert executor.counts.failed["episode_timeout"] >= 2


def broken_items() -> Iterator[dict[str, Any]]:
    yield from numbered_items(3)
    raise OSError("disk gone")


@pytest.mark.parametrize("staleness", [0, 2])
async def test_a_producer_that_raises_never_leaves_the_trainer_waiting(staleness: int) -> None:
    executor = make_executor(items=broken_items(), groups_per_step=4, max_staleness=staleness)
    async with running(executor) as run:
        with pytest.raises(OSError, match="disk gone"):
            await executor.next_batch(0)
        with pytest.raises(OSError, match="disk gone"):
            await executor.next_batch(0)
        with pytest.raises(OSError, match="disk gone"):
            await run
    assert executor.counts.in_flight == 0


@pytest.mark.parametrize("staleness", [0, 2])
@in_virtual_time
async def test_a_dead_engine_ends_the_run_with_its_last_lines(staleness: int) -> None:
    engine = ScriptedEngine(random_script(0, mean_seconds=60.0))
    executor = make_executor(engine, max_staleness=staleness)
    async with running(executor) as run:
        asyncio.get_running_loop().call_later(0.02, engine.die, "out of memory")
        with pytest.raises(EngineDiedError) as caught:
            await executor.next_batch(0)
        assert caught.value.tail == "out of memory"
        with pytest.raises(EngineDiedError):
            await run
    assert executor.counts.in_flight == 0


async def test_a_filter_that_raises_ends_the_run() -> None:
    def broken(group: Any) -> bool:
        raise ZeroDivisionError("in the filter")

    executor = make_executor(hooks=GroupHooks(group_filter=broken))
    async with running(executor):
        with pytest.raises(ZeroDivisionError, match="in the filter"):
            await executor.next_batch(0)


@pytest.mark.parametrize("staleness", [0, 2])
@in_virtual_time
async def test_stop_wakes_the_trainer_and_cancels_everything(staleness: int) -> None:
    engine = ScriptedEngine(random_script(0, mean_seconds=60.0))
    executor = make_executor(engine, max_staleness=staleness)
    run = asyncio.create_task(executor.run())
    asyncio.get_running_loop().call_later(0.02, lambda: stops.append(asyncio.ensure_future(executor.stop())))
    stops: list[asyncio.Future[None]] = []
    with pytest.raises(RuntimeError, match="stopped"):
        await executor.next_batch(0)
    await asyncio.gather(*stops)
    await run
    assert executor.counts.cancelled == executor.counts.submitted > 0
    if staleness:
        assert (await engine.health()).num_running == 0


@in_virtual_time
async def test_a_cancelled_run_leaves_no_task_behind() -> None:
    executor = make_executor(ScriptedEngine(random_script(0, mean_seconds=60.0)))
    run = asyncio.create_task(executor.run())
    await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert executor.counts.in_flight == 0
    assert executor.counts.cancelled > 0


async def test_a_failure_cancels_no_sibling() -> None:
    class OneFails(CountingWorkflow):
        calls = 0

        async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
            self.calls += 1
            if self.calls == 2:
                raise ValueError("only I")
            return await super().arun_episode(engine, data)

    executor = make_executor(workflow=OneFails(), groups_per_step=1, group_size=4, max_staleness=0)
    async with running(executor):
        (group,) = await executor.next_batch(0)
    assert group.group_id == 0
    assert len(group.trajectories) == 3
    assert executor.counts.failed == {"ValueError": 1}
    assert np.array_equal(group.rewards, [1.0, 1.0, 1.0])
