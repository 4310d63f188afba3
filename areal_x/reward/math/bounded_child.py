"""Runs a job on model text in a forked child that is killed at its deadline, whatever it does.

Signals and threads cannot stop C code that holds the interpreter lock (``7**(2*10**7)``), so the job gets a process of
its own. The parent forks, waits for an answer on a pipe, and kills the child when the time is up; a limit that was hit
is a verdict on the text, told by ``LimitReached``. This works in a worker of the process pool, in any other process and
in any thread: the parent handles one pipe and one process id, no signal. What the job needs has to be imported before,
so that the child neither waits for an import nor does it again.

In the child nothing is left to reach: see ``child_guard``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from areal_x.process_pool import isolation
from areal_x.reward.math.child_guard import guard_child

__all__ = ["ChildError", "LimitReached", "Limits", "run_bounded"]

_MAX_REPLY_BYTES = 1 << 20
_SIGNAL_REASONS = {
    signal.SIGKILL: "math_memory_limit",  # Only the kernel's memory killer sends it but for this module.
    signal.SIGXCPU: "math_time_limit",
    signal.SIGABRT: "math_memory_limit",
    signal.SIGSEGV: "math_too_deep",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may take.

    Args:
        time_limit: seconds until the child is killed.
        memory_limit_bytes: address space above what the parent has at the moment of the fork.
    """

    time_limit: float = 5.0
    memory_limit_bytes: int = 512 << 20


class LimitReached(Exception):
    """The job's text took too much; ``reason`` is one word for the metadata of the verdict."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ChildError(RuntimeError):
    """The job raised, or its child ended without an answer: a fault of the machinery, not of the text."""


def run_bounded(job: Callable[[], Any], limits: Limits) -> Any:
    """The JSON value that ``job`` returns, computed in a child.

    Raises:
        LimitReached: the child was stopped by a limit (``math_time_limit``, ``math_memory_limit``, ``math_too_deep``).
        ChildError: the job raised something else, or the child died of something else.
        OSError: no process could be made.
    """
    read_end, write_end = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        raise
    if pid == 0:
        _run_child(job, limits, write_end, parent)
    os.close(write_end)
    deadline = time.monotonic() + limits.time_limit
    reply = status = None
    try:
        reply = _read_until(read_end, deadline)
        if reply is not None and not reply.endswith(b"\n"):
            status = _exit_status(pid, deadline)
    finally:
        os.close(read_end)
        if status is None:
            _kill(pid)
    if reply is None or (status is None and not reply.endswith(b"\n")):
        raise LimitReached("math_time_limit")
    return _unpack(reply, status)


def _read_until(read_end: int, deadline: float) -> bytes | None:
    """One line from the child; what came when it died without one; None when the deadline passed."""
    poll = select.poll()
    poll.register(read_end, select.POLLIN)
    chunks: list[bytes] = []
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(remaining * 1000):
            return None
        chunk = os.read(read_end, 1 << 16)
        chunks.append(chunk)
        if not chunk or chunk.endswith(b"\n"):
            return b"".join(chunks)


def _exit_status(pid: int, deadline: float) -> int | None:
    """Reap a child that closed its pipe; None if it had not ended by the deadline."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
    finally:
        os.close(pidfd)
    return os.waitpid(pid, 0)[1]


def _kill(pid: int) -> None:
    """End a child that has answered and is leaving, or that has to go: nothing of it is needed any more."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # This process ignores SIGCHLD: the kernel has reaped it.


def _unpack(reply: bytes, status: int | None) -> Any:
    if reply.endswith(b"\n"):
        kind, value = json.loads(reply)
        if kind == "value":
            return value
        if kind == "limit":
            raise LimitReached(value)
        raise ChildError(f"the grader's child failed: {value}")
    number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
    reason = _SIGNAL_REASONS.get(signal.Signals(number)) if number else None
    if reason is not None:
        raise LimitReached(reason)
    raise ChildError(f"the grader's child ended without an answer (wait status {status})")


def _run_child(job: Callable[[], Any], limits: Limits, write_end: int, parent: int) -> NoReturn:
    """The child's life: lock itself in, do the job, answer, end without running the parent's clean-up."""
    try:
        isolation.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        guard_child(limits.memory_limit_bytes, limits.time_limit, write_end)
        reply = ["value", job()]
    except MemoryError:
        reply = ["limit", "math_memory_limit"]
    except RecursionError:
        reply = ["limit", "math_too_deep"]
    except BaseException as error:  # The boundary of a process: it must end here, not go on as a copy of its parent.
        reply = ["error", f"{type(error).__name__}: {str(error)[:500]}"]
    try:
        data = json.dumps(reply).encode()[:_MAX_REPLY_BYTES] + b"\n"
        while data:
            data = data[os.write(write_end, data) :]
    finally:
        os._exit(0)
