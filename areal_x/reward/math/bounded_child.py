"""Runs jobs on model text in a child process that is killed at a job's deadline, whatever the job does.

Signals and threads cannot stop C code that holds the interpreter lock (``7**(2*10**7)``), so jobs get a process of
their own: one for each process that grades, forked at the first job and kept for those that follow. A job's limit is a
verdict on its text, told by ``LimitReached``. The child is killed, and a new one forked for the next job, when a job
did not give a value, when it says that it is spent (``child_loop``), and when it does not know the job's function. This
works in a worker of the process pool, in any other process and in any thread; threads take turns. A child gets a job
once it has said that it is ready: how it ends before that is no verdict on a text (``child_process``).

The child ends with the thread that forked it, by the kernel, and with its process. A fork of its owner has no part in
it. In the child nothing is left to reach: see ``child_guard``.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from areal_x.reward.math.child_loop import SPENT
from areal_x.reward.math.child_process import Child, ChildError, start_child

__all__ = ["ChildError", "LimitReached", "Limits", "run_bounded"]

_SIGNAL_REASONS = {
    "SIGKILL": "math_memory_limit",  # Only the kernel's memory killer sends it but for this module.
    "SIGXCPU": "math_time_limit",
    "SIGABRT": "math_memory_limit",
    "SIGSEGV": "math_too_deep",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may take.

    Args:
        time_limit: seconds until the child is killed.
        memory_limit_bytes: address space above what the child has when the job begins.
    """

    time_limit: float = 5.0
    memory_limit_bytes: int = 512 << 20


class LimitReached(Exception):
    """The job's text took too much; ``reason`` is one word for the metadata of the verdict."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def run_bounded(function: Callable[..., Any], arguments: Sequence[Any], limits: Limits) -> Any:
    """The JSON value of ``function(*arguments)``, computed in the child; the arguments are JSON values, too.

    The function should be one of a module: a child knows those that were used in this process before its fork, and
    what they need should have been imported by then, so that the child neither waits for an import nor does it again.

    Raises:
        LimitReached: the child was stopped by a limit (``math_time_limit``, ``math_memory_limit``, ``math_too_deep``).
        ChildError: the function raised something else, or the child died of something else, or before the job.
        OSError: no process could be made.
    """
    return _owner.run(function, arguments, limits)


class _Owner:
    """The child of this process, if it has one, and the functions that the next one will know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._functions: list[Callable[..., Any]] = []

    def run(self, function: Callable[..., Any], arguments: Sequence[Any], limits: Limits) -> Any:
        if self._child is not None and self._child.owner != os.getpid():
            self.abandon()  # Forked by something that Python was not told of.
        with self._lock:
            while True:
                try:
                    return self._ask(function, arguments, limits)
                except _ThreadEnded:
                    continue

    def _ask(self, function: Callable[..., Any], arguments: Sequence[Any], limits: Limits) -> Any:
        if function not in self._functions:
            self._functions.append(function)
        number = self._functions.index(function)
        child = self._ready_child(number, limits.memory_limit_bytes)
        request = json.dumps([number, arguments, limits.time_limit, limits.memory_limit_bytes]).encode() + b"\n"
        deadline = time.monotonic() + limits.time_limit
        reply, usable = None, False
        try:
            reply = child.ask(request, deadline)
            if reply is None or (not reply.endswith(b"\n") and not child.has_ended(deadline)):
                raise LimitReached("math_time_limit")
            usable = child.stays and reply.endswith(b"\n") and not reply.startswith(SPENT)
        finally:
            if not usable:
                self._child = None
                ended = child.kill()
        if reply.endswith(b"\n"):
            return _unpack(reply)
        if child.ended_with_its_thread():
            raise _ThreadEnded
        raise _error_of_end(ended)

    def _ready_child(self, number: int, memory_limit_bytes: int) -> Child:
        child = self._child
        if child is not None:
            if number < child.known and memory_limit_bytes <= child.memory_limit_bytes and not child.has_ended():
                return child
            self._child = None
            child.kill()
        self._child = start_child(tuple(self._functions), memory_limit_bytes)
        return self._child

    def abandon(self) -> None:
        self._lock = threading.Lock()
        if self._child is not None:
            self._child.abandon()
            self._child = None


class _ThreadEnded(Exception):
    """The child was killed with the thread that had forked it, in the middle of another thread's job."""


def _unpack(reply: bytes) -> Any:
    kind, value = json.loads(reply.lstrip(SPENT))
    if kind == "value":
        return value
    if kind == "limit":
        raise LimitReached(value)
    raise ChildError(f"the grader's child failed: {value}")


def _error_of_end(ended: str) -> Exception:
    reason = _SIGNAL_REASONS.get(ended)
    return LimitReached(reason) if reason else ChildError(f"the grader's child ended without an answer ({ended})")


_owner = _Owner()
os.register_at_fork(after_in_child=_owner.abandon)
