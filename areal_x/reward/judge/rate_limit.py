"""Limits per minute: a bucket that knows no clock but the one it is given, and a first-come queue in front of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["RateLimiter", "TokenBucket"]

_MINUTE = 60.0
_ROUNDING = 1e-9


class TokenBucket:
    """At most ``per_minute`` units in any 60 seconds.

    A bucket of capacity C that fills with r per second gives at most C + 60 r units in 60 s, so C + 60 r is kept at
    ``per_minute`` and one unit more (the window is half open). C is the share of one second, or of three for ``coarse``
    units, which requests take many of at once. A request for more than C is let through once the bucket is full and
    leaves it in debt.

    Args:
        per_minute: units in a minute, 1 at least.
        clock: seconds, never going back.
        coarse: whether requests take many units at once.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float], coarse: bool = False) -> None:
        share = per_minute * (3.0 if coarse else 1.0) / _MINUTE
        self.capacity = max(1.0, float(int(share)))
        self.per_second = (per_minute - self.capacity + (0.0 if coarse and self.capacity > 1 else 1.0)) / _MINUTE
        self._per_minute = per_minute
        self._clock = clock
        self._level = self.capacity
        self._filled_at = clock()

    def seconds_until(self, amount: float) -> float:
        """Seconds until ``amount`` can be taken; 0: now."""
        self._fill()
        missing = min(amount, self.capacity) - self._level
        return max(0.0, missing / self.per_second) if missing > _ROUNDING else 0.0

    def take(self, amount: float) -> None:
        """Take ``amount``, which may leave the bucket in debt."""
        self._fill()
        self._level -= amount

    def correct(self, surplus: float) -> None:
        """Give back what was taken in excess, or take (``surplus`` below 0) what was really used beyond it.

        The debt that this makes is at most one minute's units: after that minute no window of 60 s sees them, and no
        wrong count can hold up a run for longer.
        """
        self._fill()
        lowest = min(self._level, -self._per_minute)
        self._level = min(self.capacity, max(self._level + surplus, lowest))

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self.capacity, self._level + max(0.0, now - self._filled_at) * self.per_second)
        self._filled_at = max(now, self._filled_at)


class RateLimiter:
    """Hands out turns under limits per minute, first come, first served, with one timer for the first in the queue.

    Args:
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._loop = asyncio.get_running_loop()
        clock = self._loop.time
        self._requests = TokenBucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = TokenBucket(tokens_per_minute, clock, coarse=True) if tokens_per_minute else None
        self._queue: deque[tuple[asyncio.Future[None], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_unlimited(self) -> bool:
        """Whether turns are given at once, always."""
        return self._requests is None and self._tokens is None

    async def turn(self, tokens: float) -> None:
        """Wait for the turn of one request of about ``tokens`` tokens."""
        if not self._queue and self._seconds_until(tokens) == 0.0:
            self._take(tokens)
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.append((future, tokens))
        self._serve()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.correct(tokens)
                if self._requests is not None:
                    self._requests.correct(1.0)
            self._serve()
            raise

    def correct(self, surplus: float) -> None:
        """Tell how many tokens fewer (or, below 0, more) a request took than it had asked for."""
        if self._tokens is not None:
            self._tokens.correct(surplus)

    def _seconds_until(self, tokens: float) -> float:
        seconds = self._requests.seconds_until(1.0) if self._requests is not None else 0.0
        return max(seconds, self._tokens.seconds_until(tokens)) if self._tokens is not None else seconds

    def _take(self, tokens: float) -> None:
        if self._requests is not None:
            self._requests.take(1.0)
        if self._tokens is not None:
            self._tokens.take(tokens)

    def _serve(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            future, tokens = self._queue[0]
            if not future.done():
                seconds = self._seconds_until(tokens)
                if seconds > 0.0:
                    # Clocks are coarse: a timer that fires a little early must not spin.
                    self._timer = self._loop.call_later(max(seconds, 0.001), self._serve)
                    return
                self._take(tokens)
                future.set_result(None)
            self._queue.popleft()
