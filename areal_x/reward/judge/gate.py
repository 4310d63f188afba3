"""How many calls are under way at once, and how fast new ones start."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["ConcurrencyGate"]

_TICK_SECONDS = 0.001


class ConcurrencyGate:
    """At most ``max_concurrent`` holders, first come, first served, a few starts at a time.

    Starting a request takes the event loop about 0.4 ms. Thousands that start in one go would hold it up for a second,
    and their answers, arriving together, again; a few in each millisecond keep every stall short.

    Args:
        max_concurrent: holders at once; infinity: only the pace counts.
        starts_per_tick: starts in a millisecond, which is longer when the loop is busy.
    """

    def __init__(self, max_concurrent: float, starts_per_tick: int = 4) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = max_concurrent
        self._starts_per_tick = self._starts_left = starts_per_tick
        self._queue: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self) -> None:
        """Wait for a place."""
        if not self._queue and self._free > 0 and self._starts_left:
            self._start()
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give a place back."""
        self._free += 1
        self._serve()

    def _start(self) -> None:
        self._free -= 1
        self._starts_left -= 1
        if self._timer is None:
            self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._starts_left = self._starts_per_tick
        self._serve()

    def _serve(self) -> None:
        while self._queue and self._free > 0 and self._starts_left:
            future = self._queue.popleft()
            if not future.done():
                self._start()
                future.set_result(None)
