"""A run that stops at any moment and goes on from a snapshot treats each prompt exactly once."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fakes import CountingWorkflow, make_executor, random_script, running

from areal_x.api.engine_api import Generator
from areal_x.api.errors import CheckpointError
from areal_x.api.records import ModelRequest, SamplingParams, Trajectory, TrajectoryGroup
from areal_x.api.reward_api import RewardOutcome
from areal_x.engine.inference.scripted import ScriptedEngine
from areal_x.rollout.data_stream import DataStream
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.finish_group import GroupHooks
from areal_x.rollout.rollout_state import RolloutSnapshot, read_rollout_state

GROUPS = 3


class Chancy(CountingWorkflow):
    """Fails, rejects, or takes several turns, as the random numbers say; shares one outcome between trajectories."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
        chance = self._random.random()
        request = ModelRequest(np.array([1, data["n"]]), SamplingParams())
        response = await engine.agenerate(request)
        if chance < 0.1:
            raise ValueError("unlucky")
        if chance < 0.2:
            return None
        status = "error" if chance < 0.3 else "ok"
        status_of: Any = status
        outcome = RewardOutcome(status_of, None if status == "error" else chance, {"chance": chance}, {"tags": ["a"]})
        trajectories = [Trajectory.from_response(response, outcome) for _ in range(1 + (chance > 0.8))]
        await asyncio.sleep(0.001 * chance)
        return trajectories


def reject_some(group: TrajectoryGroup) -> bool | str:
    return "unloved" if group.item["n"] % 5 == 0 else True


@dataclass
class Lineage:
    """What became of the groups of a run that may be stopped and go on."""

    trained: list[int] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)
    num_holes: int = 0


def make_run(
    seed: int,
    staleness: int,
    group_size: int,
    version: int,
    lineage: Lineage,
    folder: Path | None = None,
    max_redraws: int | None = None,
) -> tuple[ScriptedEngine, RolloutExecutor]:
    stream = DataStream([{"n": number} for number in range(17)], seed=seed)
    start = None
    if folder is not None:
        start = read_rollout_state(folder, stream.item_at)
        for _ in range(start.next_group_id):
            next(stream)
    engine = ScriptedEngine(random_script(seed + version), num_slots=8, version=version)
    executor = make_executor(
        engine,
        Chancy(seed + version),
        (item for _, item in stream),
        groups_per_step=GROUPS,
        group_size=group_size,
        max_staleness=staleness,
        max_redraws=max_redraws,
        num_slots=8,
        on_failure="mask",
        hooks=GroupHooks(group_filter=reject_some),
        max_failure_rate=1.0,
        version=version,
        start=start,
        lockstep=False,
        on_prompt=lambda end: lineage.settled.append(end.group_id),
    )
    return engine, executor


async def train(
    engine: ScriptedEngine, executor: RolloutExecutor, first: int, last: int, staleness: int, lineage: Lineage
) -> RolloutSnapshot:
    """Steps ``first`` to ``last``, and the snapshot after the last one, before its weights are live."""
    async with running(executor):
        for version in range(first, last):
            if version > first:
                await engine.update_weights(version)
                executor.on_published(version)
            groups = await executor.next_batch(version)
            for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
                assert (trajectory.versions[trajectory.loss_mask] >= version - staleness).all()
            lineage.trained += [group.group_id for group in groups]
            bound = (staleness + executor.budget.version + 1) * GROUPS
            assert executor.budget.num_accepted_groups + executor.budget.num_running_groups <= bound
            await asyncio.sleep(0.002)
            executor.check_conservation()
        lineage.num_holes += executor.redraws.num_holes
        snapshot, num_settled = executor.snapshot(), len(lineage.settled)
        # The executor goes on; what it does now is of weights that do not survive.
        await asyncio.sleep(0.004)
        del lineage.settled[num_settled:]
        return snapshot


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    staleness=st.integers(0, 3),
    group_size=st.integers(1, 4),
    stops=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    max_redraws=st.one_of(st.none(), st.integers(0, 2)),
)
def test_each_prompt_has_one_fate_whenever_a_run_stops(
    seed: int, staleness: int, group_size: int, stops: list[int], max_redraws: int | None
) -> None:
    async def run() -> None:
        lineage, folder, version = Lineage(), None, 0
        with tempfile.TemporaryDirectory() as name:
            for part, steps in enumerate(stops):
                engine, executor = make_run(seed, staleness, group_size, version, lineage, folder, max_redraws)
                snapshot = await train(engine, executor, version, version + steps, staleness, lineage)
                version += steps
                folder = Path(name) / str(part)
                folder.mkdir()
                snapshot.write(folder)
        fates = sorted([*lineage.trained, *lineage.settled])
        assert len(fates) == len(set(fates)), "a prompt has two fates"
        number = snapshot.record["next_group_id"]
        assert sorted([*fates, *snapshot.group_ids]) == list(range(number)), "a prompt was lost"
        assert len(lineage.trained) + lineage.num_holes == sum(stops) * GROUPS

    asyncio.run(run())


async def snapshot_of_a_run(folder: Path) -> tuple[RolloutExecutor, RolloutSnapshot]:
    """A snapshot with open groups, ready ones and episodes that have ended, written to ``folder``."""
    _, executor = make_run(3, 2, 4, 0, Lineage())
    async with running(executor):
        await executor.next_batch(0)
        while not executor.num_ready_groups:
            await asyncio.sleep(0.001)
        snapshot = executor.snapshot()
        ready = executor._ready.groups
        for trajectory in (trajectory for one in ready for trajectory in one.group.trajectories):
            trajectory.loss_mask[:] = False  # As the trainer masks what is too old.
    snapshot.write(folder)
    return executor, snapshot


def as_text(snapshot: RolloutSnapshot) -> str:
    """A masked episode's reward is NaN, which equals nothing, not even itself."""
    return json.dumps(snapshot.record, sort_keys=True)


async def test_what_episodes_finished_comes_back_as_it_was(tmp_path: Path) -> None:
    _, snapshot = await snapshot_of_a_run(tmp_path)
    stream = DataStream([{"n": number} for number in range(17)], seed=3)
    state = read_rollout_state(tmp_path, stream.item_at)
    assert as_text(RolloutSnapshot.of(state)) == as_text(snapshot)
    for name, array in RolloutSnapshot.of(state).arrays.items():
        assert array.dtype == snapshot.arrays[name].dtype
        np.testing.assert_array_equal(array, snapshot.arrays[name])
    ready = state.ready[0]
    assert ready.group.item == stream.item_at(ready.group_id)
    assert any(trajectory.loss_mask.any() for trajectory in ready.group.trajectories), "the snapshot was changed"
    kept = {id(trajectory) for episode in ready.kept for trajectory in episode.trajectories or ()}
    assert kept <= {id(trajectory) for trajectory in ready.group.trajectories}
    assert all(
        len({id(trajectory.outcome) for trajectory in episode.trajectories}) == 1
        for episode in ready.kept
        if episode.trajectories
    )


async def test_what_happens_after_a_snapshot_is_not_in_it() -> None:
    """Records and arrays are made when it is written, of what was copied when it was taken."""
    engine, executor = make_run(3, 2, 4, 0, Lineage())
    async with running(executor):
        await executor.next_batch(0)
        while not executor.num_ready_groups:
            await asyncio.sleep(0.001)
        at_once, later = executor.snapshot(), executor.snapshot()
        text, arrays = as_text(at_once), {name: array.copy() for name, array in at_once.arrays.items()}
        await engine.update_weights(1)
        executor.on_published(1)
        for group in await executor.next_batch(1):
            for trajectory in group.trajectories:
                trajectory.loss_mask[:] = False
                trajectory.outcome = RewardOutcome("ok", -1.0)
        await asyncio.sleep(0.01)
    assert as_text(later) == text
    for name, array in later.arrays.items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
async def test_a_damaged_state_is_named(tmp_path: Path, damage: str) -> None:
    await snapshot_of_a_run(tmp_path)
    arrays = tmp_path / "rollout.npz"
    if damage == "missing":
        arrays.unlink()
    elif damage == "cut":
        arrays.write_bytes(arrays.read_bytes()[:-200])
    else:
        (tmp_path / "rollout.json").write_text('{"next_group_id": 3}')
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_rollout_state(tmp_path, lambda group_id: {})


def test_a_group_gets_its_item_again() -> None:
    for shuffle, size in itertools.product((True, False), (1, 7)):
        items = [{"n": number} for number in range(size)]
        stream = DataStream(items, seed=4, shuffle=shuffle)
        drawn = [next(stream) for _ in range(5 * size + 2)]
        again = DataStream(items, seed=4, shuffle=shuffle)
        for group_id in reversed(range(len(drawn))):
            index, item = drawn[group_id]
            assert again.place(group_id) == (group_id // size, index)
            assert again.item_at(group_id) is item


async def test_groups_that_models_score_come_back_with_what_they_share(tmp_path: Path) -> None:
    """A group that waits for reward models has its verdict after the resume; no outcome is counted twice."""
    stream = DataStream([{"n": number} for number in range(17)], seed=3)
    hooks = GroupHooks(group_filter=reject_some, waits_for_models=True)
    options: dict[str, Any] = {"groups_per_step": GROUPS, "group_size": 2, "lockstep": False, "hooks": hooks}
    executor = make_executor(ScriptedEngine(random_script(5)), items=(item for _, item in stream), **options)
    async with running(executor):
        while executor.num_ready_groups < 2:
            await asyncio.sleep(0.001)
        executor.snapshot().write(tmp_path)
        await executor.next_candidates(1)
        with pytest.raises(RuntimeError, match="holds groups"):
            executor.snapshot()
    again = DataStream([{"n": number} for number in range(17)], seed=3)
    start = read_rollout_state(tmp_path, again.item_at)
    ready, submitted = sorted(one.group_id for one in start.ready), start.counts.submitted
    assert len(ready) >= 2
    for _ in range(start.next_group_id):
        next(again)
    ends: list[int] = []
    engine = ScriptedEngine(random_script(6))
    executor = make_executor(
        engine,
        items=(item for _, item in again),
        start=start,
        on_prompt=lambda end: ends.append(end.group_id),
        **options,
    )
    async with running(executor):
        groups = await executor.next_candidates(len(ready))
        assert [group.group_id for group in groups] == ready
        for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
            trajectory.outcome = RewardOutcome("ok", 7.0)
        trained = executor.settle_candidates([])
        executor.check_conservation()
        assert all((group.rewards == 7.0).all() for group in trained), "the scores did not reach the groups"
        assert sorted([*ends, *(group.group_id for group in trained)]) == ready
        assert executor.counts.submitted >= submitted


async def test_a_group_that_was_just_scored_together_is_not_lost(tmp_path: Path) -> None:
    """The scores are there, and what follows from them comes with the next pass of the loop: a run stops between."""

    async def score(outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        asyncio.get_running_loop().call_soon(lambda: taken.append(executor.snapshot()))
        return [RewardOutcome("ok", 5.0) for _ in outcomes]

    taken: list[RolloutSnapshot] = []
    hooks = GroupHooks(score)
    options: dict[str, Any] = {"groups_per_step": GROUPS, "group_size": 2, "lockstep": False, "hooks": hooks}
    workflow = CountingWorkflow(lambda data: RewardOutcome("pending", pending="later"))
    stream = DataStream([{"n": number} for number in range(17)], seed=3)
    executor = make_executor(
        ScriptedEngine(random_script(5)), workflow, (item for _, item in stream), max_staleness=0, **options
    )
    async with running(executor):
        await executor.next_batch()
    first = taken[0]
    assert any(all(e["trajectories"] is not None for e in group["episodes"]) for group in first.record["open_groups"])
    first.write(tmp_path)
    start = read_rollout_state(tmp_path, stream.item_at)
    executor = make_executor(
        ScriptedEngine(random_script(6)), workflow, iter(()), max_staleness=0, start=start, **options
    )
    async with running(executor):
        groups = await asyncio.wait_for(executor.next_batch(), 10.0)
        executor.check_conservation()
    assert [group.group_id for group in groups] == first.group_ids == list(range(GROUPS))
    assert all((group.rewards == 5.0).all() for group in groups)
