"""The life of an object that scores: started once on the loop that uses it, closed once."""

from __future__ import annotations

import asyncio
from typing import Any

from areal_x.api.errors import ConfigError

__all__ = ["RewardLifecycle", "has_lifecycle"]

_METHODS = ("start", "close", "metrics")
_START_SECONDS = 120.0


def has_lifecycle(target: Any) -> bool:
    """Whether an object keeps something for a run."""
    return any(callable(getattr(target, name, None)) for name in _METHODS)


class RewardLifecycle:
    """Starts an object before its first call on a loop, and closes it; wrappers of one object share this.

    Args:
        target: the object; ``async def start()`` and ``async def close()`` are optional.
        name: of the reward, for messages.
    """

    def __init__(self, target: Any, name: str) -> None:
        self._target = target
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_started = False
        self._lock = asyncio.Lock()

    @property
    def is_started(self) -> bool:
        """Whether the object may be called on the running loop."""
        return self._is_started and self._loop is asyncio.get_running_loop()

    async def start(self) -> None:
        """Start the object, unless it has been on this loop.

        Raises:
            ConfigError: it is not ready after two minutes.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._is_started, self._lock = loop, False, asyncio.Lock()
        async with self._lock:
            start = getattr(self._target, "start", None)
            if start is not None and not self._is_started:
                deadline = asyncio.timeout(_START_SECONDS)
                try:
                    async with deadline:
                        await start()
                except TimeoutError as error:
                    if not deadline.expired():
                        raise
                    text = f"reward {self._name}: its start() is not done after {_START_SECONDS:g} s"
                    raise ConfigError(text) from error
            self._is_started = True

    async def close(self) -> None:
        """Close the object if it was started on this loop. Safe to call again."""
        was_started = self.is_started
        self._is_started = False
        close = getattr(self._target, "close", None)
        if was_started and close is not None:
            await close()
