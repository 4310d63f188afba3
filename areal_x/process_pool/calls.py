"""Calls, their results, and the clients that queue them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Call", "CallResult", "PoolClient", "RegisteredFunction"]

CallStatus = Literal["ok", "timeout", "crash", "error"]


@dataclass(slots=True)
class CallResult:
    """How one call ended. ``value`` is set if ``status`` is ``ok``."""

    status: CallStatus
    value: Any = None
    error: str | None = None
    """One line that says what went wrong."""
    error_type: str | None = None
    """Class name of the exception that the function raised."""
    traceback: str | None = None
    output: str = ""
    """The first characters that the function printed."""
    seconds: float = 0.0
    """Time of the work itself, queueing excluded."""
    started_at: float = 0.0
    """``time.monotonic()`` at the start of the work."""
    attempts: int = 1


@dataclass(slots=True, eq=False)
class RegisteredFunction:
    """A function that the workers know. Made by ``ProcessPool.register``."""

    number: int
    name: str
    mean_seconds: float = 1.0
    """Moving average of a call's time; short calls are sent ahead of time."""


class PoolClient:
    """One user of a pool: its own queue, served in turn with the others', and its own share of the workers.

    ``max_workers`` bounds how many of its calls run at once; None means all workers.
    """

    __slots__ = ("cap", "listed", "queue", "running")

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        self.cap = max_workers
        self.queue: deque[Call] = deque()
        self.running = 0
        self.listed = False
        """True exactly while the pool's ready list holds it: its queue is not empty and it is below its cap."""


class Call:
    """One call from submission to result."""

    __slots__ = ("attempts", "client", "function", "future", "int_lists", "kwargs", "number", "payload", "timeout")

    def __init__(
        self,
        client: PoolClient,
        function: RegisteredFunction,
        kwargs: dict[str, Any],
        timeout: float,
        int_lists: tuple[str, ...],
        future: asyncio.Future[CallResult],
    ) -> None:
        self.client = client
        self.function = function
        self.kwargs = kwargs
        self.timeout = timeout
        self.int_lists = int_lists
        self.future = future
        self.attempts = 1
        self.number = 0
        self.payload: bytes | None = None
