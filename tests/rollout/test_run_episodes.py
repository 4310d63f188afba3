from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rollout_fakes import CountingWorkflow, in_virtual_time, numbered_items, random_script

from areal_x.api.config import RolloutConfig
from areal_x.api.engine_api import Generator
from areal_x.api.errors import EngineDiedError, FailureBudgetError
from areal_x.api.records import Trajectory
from areal_x.api.reward_api import RewardOutcome
from areal_x.engine.inference.scripted import ScriptedEngine
from areal_x.rollout.episode import EpisodeRecord
from areal_x.rollout.run_episodes import run_episodes


class SomeFail(CountingWorkflow):
    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
        if data["n"] % 10 == 3:
            raise ValueError("item 3 of ten")
        return await super().arun_episode(engine, data)


@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("group_size", [1, 3])
async def test_every_item_is_measured_once_and_failures_are_counted(lockstep: bool, group_size: int) -> None:
    records: list[EpisodeRecord] = []
    finished = await run_episodes(
        engine=ScriptedEngine(random_script(1), num_slots=4),
        workflow=SomeFail(lambda data: RewardOutcome("ok", float(data["n"]))),
        items=numbered_items(40),
        config=RolloutConfig(num_slots=4, max_staleness=0),
        group_size=group_size,
        lockstep=lockstep,
        on_record=records.append,
    )
    expected = [n for n in range(40) if n % 10 != 3]
    assert [group.item_index for group in finished.groups] == expected
    assert [group.rewards.tolist() for group in finished.groups] == [[float(n)] * group_size for n in expected]
    assert finished.counts.submitted == 40 * group_size == len(records)
    assert finished.counts.failed == {"ValueError": 4 * group_size}
    assert finished.counts.in_flight == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_items_no_episodes() -> None:
    finished = await run_episodes(
        engine=ScriptedEngine(random_script(0)), workflow=CountingWorkflow(), items=[], config=RolloutConfig()
    )
    assert finished.groups == []
    assert finished.counts.submitted == 0


async def test_an_evaluation_whose_scores_all_fail_says_why() -> None:
    workflow = CountingWorkflow(lambda data: RewardOutcome("error", error="Traceback: no such column"))
    with pytest.raises(FailureBudgetError, match="no such column"):
        await run_episodes(
            engine=ScriptedEngine(random_script(0)),
            workflow=workflow,
            items=numbered_items(64),
            config=RolloutConfig(),
            failure_window=32,
        )
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_a_dead_engine_ends_an_evaluation() -> None:
    engine = ScriptedEngine(random_script(0, mean_seconds=60.0))
    asyncio.get_running_loop().call_later(0.02, engine.die)
    with pytest.raises(EngineDiedError):
        await run_episodes(engine=engine, workflow=CountingWorkflow(), items=numbered_items(8), config=RolloutConfig())
