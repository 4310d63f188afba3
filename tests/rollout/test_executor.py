from __future__ import annotations

import asyncio

import pytest

from areal_x.engine.inference.scripted import ScriptedEngine
from tests.rollout.fakes import make_executor, random_script, running


async def test_trains_steps_within_the_bound() -> None:
    engine = ScriptedEngine(random_script(1, mean_seconds=0.004), num_slots=16)
    executor = make_executor(engine, groups_per_step=8, num_slots=16, max_staleness=2)
    async with running(executor):
        for version in range(12):
            groups = await executor.next_batch(version)
            assert len(groups) == 8
            for group in groups:
                for trajectory in group.trajectories:
                    versions = trajectory.versions[trajectory.loss_mask]
                    assert (versions >= version - 2).all()
            await asyncio.sleep(0.002)
            await engine.update_weights(version + 1)
            executor.on_published(version + 1)
            executor.check_conservation()
    assert executor.counts.trained == 12 * 8 * 2
    assert executor.counts.in_flight == 0
