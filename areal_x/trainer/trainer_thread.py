"""The one thread in which the train engine works, so that the event loop keeps serving episodes meanwhile."""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["TrainerThread"]

Result = TypeVar("Result")

_EXIT_SECONDS = 1.0
_EXIT_FAILED = 1


class TrainerThread:
    """Runs blocking calls one after another on a daemon thread.

    A daemon thread, because an interrupted run must end within seconds even in the middle of a long training step; a
    ``ThreadPoolExecutor`` would be joined at exit. At the exit of a run that failed, a call in progress has a moment to
    end; then the process leaves without it, as failed.

    The thread and the loop share the interpreter's lock. The trainer gives it up at every tensor operation, and so does
    the loop at every system call; whoever wants it back waits for up to a switch interval, 5 ms by default,
    which adds up over a training step of many small operations. So the interval is made short here.

    Args:
        name: of the thread. What takes long beside the training, such as writing files, has a thread of its own.
    """

    SWITCH_SECONDS = 2e-4

    def __init__(self, name: str = "trainer") -> None:
        sys.setswitchinterval(self.SWITCH_SECONDS)
        self._busy: tuple[float, float | None] = (0.0, None)
        """Seconds of finished calls, and when the call in progress started: one value, so that no reader sees half."""
        self._calls: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        _threads.add(self)

    def busy_seconds(self, now: float) -> float:
        """Wall-clock seconds of all calls so far, the one in progress included; ``now`` is ``time.monotonic()``."""
        finished_seconds, started = self._busy
        return finished_seconds + (0.0 if started is None else max(0.0, now - started))

    async def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Await ``function(*args)`` on the thread."""
        return await self.submit(function, *args)

    def submit(self, function: Callable[..., Result], *args: Any) -> asyncio.Future[Result]:
        """Have the thread call ``function(*args)`` from this moment on, whatever the event loop has to do first."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._calls.put((loop, future, lambda: function(*args)))
        return future

    def close(self) -> None:
        """Let the thread end after the call that it is in."""
        self._calls.put(None)

    def is_in_call(self, seconds: float) -> bool:
        """Whether a call is in progress, and still after so long."""
        if self._busy[1] is not None:
            self._thread.join(seconds)
        return self._busy[1] is not None and self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, future, function = call
            finished_seconds, started = self._busy[0], time.monotonic()
            self._busy = (finished_seconds, started)
            result, error = None, None
            try:
                result = function()
            # The boundary between the thread and the loop: whatever was raised is raised again where it is awaited.
            except BaseException as raised:
                error = raised
            self._busy = (finished_seconds + time.monotonic() - started, None)
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: the run is over and nobody waits for this call


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


_threads: weakref.WeakSet[TrainerThread] = weakref.WeakSet()


@atexit.register
def _leave_calls_in_progress() -> None:
    """The interpreter, as it ends, would stop the thread in the middle of compiled code, which aborts the process."""
    if any(thread.is_in_call(_EXIT_SECONDS) for thread in list(_threads)):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_EXIT_FAILED)
