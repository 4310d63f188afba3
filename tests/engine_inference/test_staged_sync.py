"""Staging before publishing: on a thread, one at a time, and never left running behind a cancellation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.staging import LiveWeights
from areal_x.engine.weights import StagedSync


class SlowStaging:
    """Notes what it is given and takes its time over it, unless ``open`` is set."""

    num_bytes = 100

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()
        self.running = 0
        self.written: list[int] = []
        self.threads: set[int] = set()
        self.fails = False

    def stage(self, version: int, source: LiveWeights) -> None:
        self.running += 1
        assert self.running == 1, "two at once"
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.open.wait(200)
        self.running -= 1
        if self.fails:
            raise EngineError("no space")
        assert [name for name, _ in source.named_weights()] == ["a"]
        self.written.append(version)


def named() -> Iterator[tuple[str, torch.Tensor]]:
    yield "a", torch.zeros(1)


async def test_staging_leaves_the_event_loop_free_and_comes_one_at_a_time() -> None:
    staging = SlowStaging()
    sync = StagedSync(LiveWeights(named), staging, [])
    first = asyncio.create_task(sync.stage(1))
    second = asyncio.create_task(sync.stage(2))
    await asyncio.to_thread(staging.begun.wait, 200)
    started = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - started < 60 and not first.done() and staging.written == []
    staging.open.set()
    await asyncio.gather(first, second)
    assert staging.written == [1, 2] and threading.get_ident() not in staging.threads
    assert sync.stage_seconds > 0


async def test_a_cancelled_staging_ends_before_the_weights_may_change() -> None:
    staging = SlowStaging()
    sync = StagedSync(LiveWeights(named), staging, [])
    task = asyncio.create_task(sync.stage(1))
    await asyncio.to_thread(staging.begun.wait, 200)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    staging.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert staging.written == [1]


async def test_a_failed_staging_is_raised_and_the_next_works() -> None:
    staging = SlowStaging()
    staging.open.set()
    staging.fails = True
    sync = StagedSync(LiveWeights(named), staging, [])
    with pytest.raises(EngineError, match="no space"):
        await sync.stage(1)
    staging.fails = False
    await sync.stage(2)
    assert staging.written == [2]
