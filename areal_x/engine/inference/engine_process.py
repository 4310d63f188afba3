"""Starts, watches and ends the engine's process, and keeps what it prints."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import areal_x

__all__ = ["EngineProcess"]

_TAIL_BYTES = 8192
_TAIL_LINES = 20


class EngineProcess:
    """A fresh interpreter that runs ``worker.main`` on one end of a socket pair; ``socket`` is the other end."""

    def __init__(self, num_threads: int, inherited_fds: Sequence[int], log_path: Path | None) -> None:
        self._log: IO[bytes]
        if log_path is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by release)
        else:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = log_path.open("w+b")
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        with theirs:
            fds = (theirs.fileno(), *inherited_fds)
            code = "from areal_x.engine.inference.worker import main; main()"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                env=_environment(num_threads),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; safe when it is gone."""
        self._process.kill()

    def wait(self, seconds: float) -> int | None:
        """The exit status, ``None`` when it is still alive after so long."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def tail(self) -> str:
        """The last lines that it printed."""
        # Reads at a place of its own: the file position is shared with the child, which writes at it.
        fd = self._log.fileno()
        size = os.fstat(fd).st_size
        lines = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def release(self) -> None:
        """Close the log; call when the process has ended and its tail was read."""
        self._log.close()


def _environment(num_threads: int) -> dict[str, str]:
    root = str(Path(areal_x.__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
