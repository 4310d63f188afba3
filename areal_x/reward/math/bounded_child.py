"""Runs jobs on model text in a child process that is killed at a job's deadline, whatever the job does.

Signals and threads cannot stop C code that holds the interpreter lock (``7**(2*10**7)``), so jobs get a process of
their own: one for each process that grades, forked at the first job and kept for those that follow. A job's limit is a
verdict on its text, told by ``LimitReached``. The child is killed, and a new one forked for the next job, when a job
did not give a value, when it says that it is spent (``child_loop``), and when it does not know the job's function. This
works in a worker of the process pool, in any other process and in any thread; threads take turns.

The child ends with the thread that forked it, by the kernel, and with its process. A fork of its owner has no part in
it. In the child nothing is left to reach: see ``child_guard``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from areal_x.process_pool import forget_child, keep_child
from areal_x.reward.math.child_loop import SPENT, run_child

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


class ChildError(RuntimeError):
    """The job raised, or its child ended without an answer: a fault of the machinery, not of the text."""


def run_bounded(function: Callable[..., Any], arguments: Sequence[Any], limits: Limits) -> Any:
    """The JSON value of ``function(*arguments)``, computed in the child; the arguments are JSON values, too.

    The function should be one of a module: a child knows those that were used in this process before its fork, and
    what they need should have been imported by then, so that the child neither waits for an import nor does it again.

    Raises:
        LimitReached: the child was stopped by a limit (``math_time_limit``, ``math_memory_limit``, ``math_too_deep``).
        ChildError: the function raised something else, or the child died of something else.
        OSError: no process could be made.
    """
    return _owner.run(function, arguments, limits)


class _Child:
    """A child of this process, and this process's end of the socket to it."""

    def __init__(self, functions: Sequence[Callable[..., Any]], memory_limit_bytes: int) -> None:
        self.known = len(functions)
        self.memory_limit_bytes = memory_limit_bytes
        self.owner = os.getpid()
        self._thread = threading.current_thread()
        self._socket, theirs = socket.socketpair()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                run_child(theirs.fileno(), self.owner, functions, memory_limit_bytes)
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:
            self._socket.close()
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise
        self.stays = keep_child(self._pid)

    def ask(self, request: bytes, deadline: float) -> bytes | None:
        """The line that it answers; what came when it ended without one; None when the deadline passed."""
        chunks: list[bytes] = []
        try:
            self._socket.settimeout(_until(deadline))
            self._socket.sendall(request)
            while True:
                self._socket.settimeout(_until(deadline))
                chunk = self._socket.recv(1 << 16)
                chunks.append(chunk)
                if not chunk or chunk.endswith(b"\n"):
                    return b"".join(chunks)
        except TimeoutError:
            return None
        except ConnectionError:
            return b"".join(chunks)

    def has_ended(self, deadline: float = 0.0) -> bool:
        """Whether it has ended, now or by the deadline."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def ended_with_its_thread(self) -> bool:
        """Whether another thread that forked it is gone; then the kernel has killed it."""
        return self._thread is not threading.current_thread() and not self._thread.is_alive()

    def kill(self) -> str:
        """End it unless it has ended; how it did, as the name of a signal or in words."""
        self._socket.close()
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except (ProcessLookupError, ChildProcessError):
            ended = None  # Someone else has reaped it, or this process ignores SIGCHLD and the kernel has.
        finally:
            os.close(self._pidfd)
            forget_child(self._pid)
        if ended is None:
            return "wait status unknown"
        if ended.si_code == os.CLD_EXITED:
            return f"wait status: exit {ended.si_status}"
        return signal.Signals(ended.si_status).name

    def abandon(self) -> None:
        """Let go of it in a fork of its owner."""
        self._socket.close()
        os.close(self._pidfd)


class _Owner:
    """The child of this process, if it has one, and the functions that the next one will know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
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

    def _ready_child(self, number: int, memory_limit_bytes: int) -> _Child:
        child = self._child
        if child is not None:
            if number < child.known and memory_limit_bytes <= child.memory_limit_bytes and not child.has_ended():
                return child
            self._child = None
            child.kill()
        self._child = _Child(tuple(self._functions), memory_limit_bytes)
        return self._child

    def abandon(self) -> None:
        self._lock = threading.Lock()
        if self._child is not None:
            self._child.abandon()
            self._child = None


class _ThreadEnded(Exception):
    """The child was killed with the thread that had forked it, in the middle of another thread's job."""


def _until(deadline: float) -> float:
    """Seconds until then. It raises TimeoutError when it has passed."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


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
