from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rollout_fakes import in_virtual_time, make_executor, running

from areal_x.api.engine_api import Generator
from areal_x.api.errors import EngineError, FailureBudgetError, PromptTooLongError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse, Trajectory
from areal_x.api.reward_api import RewardOutcome
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.inference.scripted import ScriptedCompletion, ScriptedEngine
from areal_x.rollout.lockstep import request_seed


class BatchEngine(ScriptedEngine):
    """Answers depend on the whole batch, as the numerics of a real engine do: any change of composition shows."""

    def __init__(self) -> None:
        super().__init__(lambda request: ScriptedCompletion([0]))
        self.batches: list[list[tuple[str, int | None]]] = []

    async def agenerate_batch(self, requests: Sequence[ModelRequest]) -> list[ModelResponse | RequestError]:
        self.batches.append([(str(request.session_id), request.sampling.seed) for request in requests])
        assert [request.order for request in requests] == list(range(len(requests)))
        digest = hashlib.blake2b(repr(self.batches[-1]).encode(), digest_size=4).digest()
        await asyncio.sleep(0)
        responses: list[ModelResponse | RequestError] = []
        for place, request in enumerate(requests):
            if request.input_ids[0] == 13:
                responses.append(PromptTooLongError("13"))
                continue
            self._script = lambda _, place=place: ScriptedCompletion([*digest, place])
            responses.append(await self.agenerate(request))
        return responses


class UnevenTurns(RolloutWorkflow):
    """Turns, rewards and failures depend on the item; how long everything takes is random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    async def pause(self) -> None:
        if self.random.random() < 0.7:
            await asyncio.sleep(self.random.random() * 0.003)

    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | None:
        await self.pause()
        ids, number = np.array([data["n"], 2]), data["n"]
        responses = []
        for _ in range(1 + number % 3):
            responses.append(await engine.agenerate(ModelRequest(ids)))
            ids = np.concatenate([responses[-1].input_ids, responses[-1].output_ids, [7]])
            await self.pause()
        if number % 4 == 1 and int(responses[0].output_ids[0]) % 2:
            return None
        await self.pause()
        return Trajectory.from_responses(responses, RewardOutcome("ok", float(responses[-1].output_ids[1])))


async def run_once(seed: int) -> tuple[list[Any], list[Any]]:
    engine = BatchEngine()
    executor = make_executor(engine, UnevenTurns(seed), groups_per_step=5, group_size=3, max_staleness=0, seed=42)
    result = []
    async with running(executor):
        for version in range(6):
            for group in await executor.next_batch(version):
                result.append(
                    (group.group_id, group.rewards.tolist(), [t.input_ids.tolist() for t in group.trajectories])
                )
            await engine.update_weights(version + 1)
            executor.on_published(version + 1)
    assert executor.counts.rejected["prompt_too_long"] == 3
    return result, engine.batches


async def test_runs_repeat_whatever_takes_how_long() -> None:
    first = await run_once(1)
    assert len(first[0]) == 30
    assert len(first[1]) > 6, "several rounds to a step"
    for seed in (2, 3, 4):
        assert await run_once(seed) == first


def test_seeds_differ_in_every_place() -> None:
    seeds = {request_seed(*place) for place in np.ndindex(3, 4, 5, 6)}
    assert len(seeds) == 3 * 4 * 5 * 6
    assert all(0 <= seed < 2**63 for seed in seeds)


async def test_several_requests_of_one_episode_go_in_one_round() -> None:
    class Forked(RolloutWorkflow):
        async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> list[Trajectory]:
            requests = [ModelRequest(np.array([1, fork])) for fork in range(3)]
            responses = await asyncio.gather(*map(engine.agenerate, requests))
            return [Trajectory.from_response(response, RewardOutcome("ok", 1.0)) for response in responses]

    engine = BatchEngine()
    executor = make_executor(engine, Forked(), groups_per_step=2, group_size=2, max_staleness=0)
    async with running(executor):
        groups = await executor.next_batch(0)
    assert [len(group.trajectories) for group in groups] == [6, 6]
    assert [len(batch) for batch in engine.batches] == [12]


async def test_a_batch_that_breaks_reaches_every_episode() -> None:
    class Broken(ScriptedEngine):
        async def agenerate_batch(self, requests: Sequence[ModelRequest]) -> list[ModelResponse | RequestError]:
            raise EngineError("no answer")

    executor = make_executor(
        Broken(lambda request: ScriptedCompletion([0])), groups_per_step=2, max_staleness=0, max_failures_in_a_row=4
    )
    async with running(executor):
        with pytest.raises(FailureBudgetError, match="no answer"):
            await executor.next_batch(0)
    assert executor.counts.failed == {"EngineError": 4}


@in_virtual_time
async def test_an_episode_cancelled_while_it_waits_holds_nobody_up() -> None:
    class Sleeper(UnevenTurns):
        async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | None:
            if data["n"] == 0:
                await asyncio.sleep(30)
            return await super().arun_episode(engine, data)

    executor = make_executor(
        BatchEngine(), Sleeper(0), groups_per_step=2, group_size=1, max_staleness=0, episode_timeout_seconds=0.15
    )
    async with running(executor):
        # Group 1 waits for group 0, which hangs. Only the one that hangs comes to its deadline.
        groups = await executor.next_batch(0)
    assert [group.group_id for group in groups] == [1, 2]
    assert executor.counts.failed == {"episode_timeout": 1}


@pytest.mark.parametrize("shielded", [False, True])
@in_virtual_time
async def test_a_workflow_that_outlives_its_episode_joins_no_round(shielded: bool) -> None:
    """A hung tool, after whose cancellation the workflow tries again; or a request that no cancellation reaches."""
    refused: list[BaseException] = []

    class Zombie(UnevenTurns):
        async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | None:
            if data["n"] == 0:
                request = ModelRequest(np.array([1, 2]))
                left_behind = asyncio.ensure_future(engine.agenerate(request)) if shielded else None
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    pass
                try:
                    await (left_behind or engine.agenerate(request))
                except RequestError as error:
                    refused.append(error)
                    raise
            return await super().arun_episode(engine, data)

    executor = make_executor(
        BatchEngine(), Zombie(0), groups_per_step=2, group_size=2, max_staleness=0, episode_timeout_seconds=0.15
    )
    async with running(executor):
        groups = await asyncio.wait_for(executor.next_batch(0), 10)
        assert len(groups) == 2
    assert executor.counts.failed["episode_timeout"] == 2
    if not shielded:
        assert len(refused) == 2 and "is over" in str(refused[0])
