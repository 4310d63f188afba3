"""The driver's hold on one rank's process: starts it, hears its end, keeps what it prints, and ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import areal_x
from areal_x.engine.ranks.rank_channel import FrameReader

__all__ = ["RankProcess"]

_TAIL_BYTES = 16384
_TAIL_LINES = 30
_TAIL_LINE_LENGTH = 400
_KILL_SECONDS = 20.0


class RankProcess:
    """A fresh interpreter that runs ``rank_main.main``, in a process group of its own with all that it starts.

    Args:
        rank: its number.
        variables: environment variables beside this process's own.
        log_path: what it prints is added there. Default: a file without a name.
    """

    def __init__(self, rank: int, variables: Mapping[str, str], log_path: Path | None) -> None:
        self.rank = rank
        self.log_path = log_path
        self._log: IO[bytes]
        if log_path is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by ``end``)
        else:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = log_path.open("a+b")
        self._log_start = self._log.seek(0, os.SEEK_END)
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.reader = FrameReader(self.socket)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                env=_environment(variables),
                process_group=0,
            )
        self.sentinel = os.pidfd_open(self._process.pid)
        """A descriptor that becomes readable when the process ends."""

    @property
    def pid(self) -> int:
        """Of the process, and of its process group."""
        return self._process.pid

    def how_it_ended(self) -> str | None:
        """``was killed by SIGKILL``, ``ended with exit code 1``; ``None`` while it lives."""
        # Looked at, not taken: until ``end`` its number stays its own, so that a signal cannot hit another process.
        info = os.waitid(os.P_PIDFD, self.sentinel, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return None
        if info.si_code == os.CLD_EXITED:
            return f"ended with exit code {info.si_status}"
        hint = " (was the machine short of memory?)" if info.si_status == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(info.si_status).name}{hint}"

    def print_stacks(self) -> None:
        """Have it print where it is. It does so even in the middle of a call, unless it is stopped."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.sentinel, signal.SIGUSR1)

    def tail(self) -> str:
        """The last lines that it printed."""
        # Reads at a place of its own: the file position is shared with the child, which writes at it.
        fd = self._log.fileno()
        size = os.fstat(fd).st_size
        start = max(self._log_start, size - _TAIL_BYTES)
        lines = os.pread(fd, size - start, start).decode(errors="replace").splitlines()
        return "\n".join(line[:_TAIL_LINE_LENGTH] for line in lines[-_TAIL_LINES:])

    def kill(self) -> None:
        """SIGKILL to the process and its descendants; safe when they are gone."""
        if self.sentinel >= 0:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, wait until it is gone, and free what the driver holds of it. Safe to call twice."""
        if self.sentinel < 0:
            return
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_SECONDS)
        self.socket.close()
        self._log.close()
        os.close(self.sentinel)
        self.sentinel = -1


_CODE = "from areal_x.engine.ranks.rank_main import main; main()"


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    root = str(Path(areal_x.__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **variables,
    }
