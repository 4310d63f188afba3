"""The grader's child as its owner sees it: how it is made, what it answers, how it ended.

It is forked, and says when it is ready for jobs. In the child of a thread, the interpreter first clears what the other
threads of the process kept for themselves, and a library may keep something there that does not live in a fork: PyTorch
keeps process groups whose threads are gone, and the child crashes or hangs. Such a child never becomes ready. Threads
of its process then get new interpreters instead (``fresh_child``), which take a second or two to start.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from areal_x.process_pool import FunctionTransferError, forget_child, keep_child, start_interpreter
from areal_x.process_pool.function_transfer import dump_function
from areal_x.reward.math.child_loop import READY, run_child

__all__ = ["FORK_SECONDS", "INTERPRETER_SECONDS", "Child", "ChildError", "start_child"]

FORK_SECONDS = 10.0
"""How long a fork may take until it is ready."""
INTERPRETER_SECONDS = 60.0
"""How long a new interpreter may take until it is ready."""

_forks_of_threads_fail = False


class ChildError(RuntimeError):
    """The job raised, or its child ended without an answer: a fault of the machinery, not of the text."""


def start_child(functions: Sequence[Callable[..., Any]], memory_limit_bytes: int) -> Child:
    """A child that is ready for jobs with these functions.

    Raises:
        ChildError: it ended, or hung, before it was ready.
        OSError: no process could be made.
    """
    global _forks_of_threads_fail
    in_thread = threading.current_thread() is not threading.main_thread()
    if not (in_thread and _forks_of_threads_fail):
        try:
            return Child(functions, memory_limit_bytes, forked=True)
        except ChildError:
            if not in_thread:
                raise
            _forks_of_threads_fail = True
    return Child(functions, memory_limit_bytes, forked=False)


class Child:
    """A child of this process, and this process's end of the socket to it."""

    def __init__(self, functions: Sequence[Callable[..., Any]], memory_limit_bytes: int, forked: bool) -> None:
        self.known = len(functions)
        self.memory_limit_bytes = memory_limit_bytes
        self.owner = os.getpid()
        self._thread = threading.current_thread()
        first = b"" if forked else _introduction(functions, memory_limit_bytes)
        self._socket, theirs = socket.socketpair()
        try:
            if forked:
                self._pid = _fork(theirs.fileno(), functions, memory_limit_bytes)
            else:
                self._pid = _start_interpreter(theirs.fileno())
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
        self._wait_until_ready(first, FORK_SECONDS if forked else INTERPRETER_SECONDS)

    def _wait_until_ready(self, first: bytes, seconds: float) -> None:
        said = None
        try:
            said = self.ask(first, time.monotonic() + seconds)
        finally:
            if said != READY:
                ended = self.kill()
        if said != READY:
            how = f"not within {seconds:g} s" if said is None else f"it ended ({ended})"
            words = f"; it said {said[:500].decode(errors='replace').strip()}" if said else ""
            raise ChildError(f"the grader's child did not become ready for its first job: {how}{words}")

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
        """Whether another thread that made it is gone; then the kernel has killed it."""
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


def _fork(descriptor: int, functions: Sequence[Callable[..., Any]], memory_limit_bytes: int) -> int:
    owner = os.getpid()
    pid = os.fork()
    if pid == 0:
        run_child(descriptor, owner, functions, memory_limit_bytes)
    return pid


def _start_interpreter(descriptor: int) -> int:
    program = f"from areal_x.reward.math.fresh_child import main; main({descriptor}, {os.getpid()})"
    return start_interpreter(program, descriptor)


def _introduction(functions: Sequence[Callable[..., Any]], memory_limit_bytes: int) -> bytes:
    """What a new interpreter has to know, as one line."""
    return json.dumps([[_described(function) for function in functions], memory_limit_bytes]).encode() + b"\n"


def _described(function: Callable[..., Any]) -> dict[str, str]:
    """How the interpreter gets it; or why it does not, which matters to its own jobs alone."""
    try:
        return {"payload": base64.b64encode(dump_function(function)).decode()}
    except FunctionTransferError as error:
        return {"error": str(error)}


def _until(deadline: float) -> float:
    """Seconds until then. It raises TimeoutError when it has passed."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
