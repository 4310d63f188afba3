"""Starts one server as a process, watches it, keeps what it prints, and ends it with all its descendants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from io import BufferedWriter
from pathlib import Path

import areal_x
from areal_x.api.errors import EngineError

__all__ = ["ServerProcess"]

_TAIL_BYTES = 16384
_TAIL_LINES = 30
_TAIL_LINE_LENGTH = 400
_START_SECONDS = 30.0
_KILL_SECONDS = 15.0


class ServerProcess:
    """A server below a guardian (see ``guardian.py``), in a session of its own.

    The server and every process that it started end with ``stop``, with ``kill``, when the server ends, when this
    object is dropped and when this process ends, even by SIGKILL.

    The constructor starts it, which blocks for some tens of milliseconds: call it on a thread where that matters.

    Args:
        argv: the command.
        env: its whole environment; it may hold secrets and is never shown.
        log_path: what it prints is added to this file, after a line that says when and what was started.

    Raises:
        EngineError: it could not be started.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log_path: Path) -> None:
        self.log_path = log_path
        self._status: int | None = None
        self._heard = ""
        self._control, theirs = socket.socketpair()
        root = Path(areal_x.__file__).resolve().parent.parent
        # Isolated: what is set for the server's Python must not reach the guardian's.
        code = (
            f"import sys; sys.path.insert(0, {str(root)!r})\nfrom areal_x.engine.servers.guardian import main; main()"
        )
        with theirs, _opened(log_path, argv) as log:
            self._log_start = log.tell()
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-c", code, str(theirs.fileno()), str(os.getpid()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._end = os.pidfd_open(self._guardian.pid)
        self.pid = self._started()
        """Of the server."""

    def __repr__(self) -> str:
        return f"ServerProcess(pid={self.pid}, status={self._status})"

    def __del__(self) -> None:
        # The guardian kills everything when its socket closes; what is left here is only to reap it.
        for close in (lambda: self._control.close(), lambda: os.close(self._end), lambda: self._guardian.wait(0)):
            with contextlib.suppress(AttributeError, OSError, subprocess.TimeoutExpired):
                close()

    def _started(self) -> int:
        self._control.settimeout(_START_SECONDS)
        try:
            # A server that ends at once is told of in the same breath.
            words, _, self._heard = self._control.recv(4096).decode().partition("\n")
        except TimeoutError:
            words = f"failed nothing heard within {_START_SECONDS:g} s"
        self._control.setblocking(False)
        kind, _, said = words.partition(" ")
        if kind != "started":
            self._guardian.kill()
            self._guardian.wait()
            raise EngineError(f"a server could not be started ({self.log_path}): {said or self.tail()}")
        return int(said)

    @property
    def status(self) -> int | None:
        """The server's exit status (minus the signal that ended it); ``None`` while it or a descendant lives."""
        if self._status is None and self._guardian.poll() is not None:
            said = self._last_words()
            if said is None:
                # The guardian was killed, and the kernel killed the server with it: the rest of its group goes, too.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                said = -signal.SIGKILL
            self._status = said
        return self._status

    def _last_words(self) -> int | None:
        with contextlib.suppress(OSError):
            self._heard += self._control.recv(4096).decode()
        kind, _, status = self._heard.strip().partition(" ")
        return int(status) if kind == "ended" else None

    async def wait(self) -> int:
        """Wait until the server and all its descendants have ended; returns ``status``."""
        while (status := self.status) is None:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            # A descriptor of its own for each waiter: a loop watches each only once.
            watched = os.dup(self._end)
            loop.add_reader(watched, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(watched)
                os.close(watched)
        return status

    def tail(self) -> str:
        """The last lines that this server printed, also after its end; empty when its log is gone."""
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        # A server prints all its settings in one line of many thousands of characters.
        return "\n".join(line[:_TAIL_LINE_LENGTH] for line in lines[-_TAIL_LINES:])

    def kill(self) -> None:
        """SIGKILL to the server and all its descendants; ``wait`` says when they are gone. Safe when they are."""
        self._order("stop 0")

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """SIGTERM to the server's process group, SIGKILL after ``grace_seconds`` to everything; returns when all ended.

        Safe when it has ended, and twice at once.

        Raises:
            EngineError: the kernel could not end a process (it waits for a device that does not answer).
        """
        self._order(f"stop {grace_seconds:g}")
        try:
            async with asyncio.timeout(grace_seconds + _KILL_SECONDS):
                await self.wait()
        except TimeoutError:
            raise EngineError(
                f"server process {self.pid} did not end within {_KILL_SECONDS:g} s of SIGKILL; look at its state in "
                f"/proc/{self.pid}/status"
            ) from None

    def _order(self, order: str) -> None:
        with contextlib.suppress(OSError):
            self._control.send(f"{order}\n".encode())


def _opened(log_path: Path, argv: Sequence[str]) -> BufferedWriter:
    """The log, at whose end it says when and what was started."""
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log = log_path.open("ab")
        with contextlib.ExitStack() as on_error:
            on_error.callback(log.close)
            log.write(f"\n==== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(argv)}\n".encode())
            log.flush()
            on_error.pop_all()
        return log
    except OSError as error:
        raise EngineError(
            f"{log_path}, the log of a server, cannot be written: {error.strerror}; free some space, or see to whom "
            "the folder belongs"
        ) from error
