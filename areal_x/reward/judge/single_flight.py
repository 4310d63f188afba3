"""Identical calls that are under way at the same time share one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["SingleFlight"]

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """One task for each key, awaited by all who ask for it meanwhile.

    A waiter that is cancelled leaves the others' task alone; when the last one leaves, the task is cancelled.
    """

    def __init__(self) -> None:
        self._tasks: dict[bytes, asyncio.Task[Result]] = {}
        self._num_waiters: dict[bytes, int] = {}
        self._ending: set[asyncio.Task[Result]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def has(self, key: bytes) -> bool:
        """Whether a call with this key is under way."""
        return key in self._tasks

    async def run(self, key: bytes, start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of the task of ``key``, started with ``start()`` if there is none."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(start(), name="judge call")
            self._tasks[key] = task
            self._num_waiters[key] = 0
            task.add_done_callback(lambda done: self._forget(key, done))
        self._num_waiters[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if self._tasks.get(key) is task:
                self._num_waiters[key] -= 1
                if not self._num_waiters[key]:
                    # Nobody waits: who asks for this key from now on must not get a task that is being cancelled.
                    self._drop(key)
                    self._ending.add(task)
                    task.add_done_callback(self._ending.discard)
                    task.cancel()

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        tasks = [*self._tasks.values(), *self._ending]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, key: bytes, task: asyncio.Task[Result]) -> None:
        if not task.cancelled():
            task.exception()  # Retrieved, also where every waiter has left.
        if self._tasks.get(key) is task:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        del self._tasks[key], self._num_waiters[key]
