"""Weights through this machine's memory: mapped by vLLM's worker, or as files on /dev/shm for SGLang."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.disk import DiskTransport
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.shared_buffers import specs_to_json
from areal_x.engine.transfer.staging import OpenWrite
from areal_x.engine.transfer.transport import Order, WeightTransport
from areal_x.engine.weights import SharedWeights

__all__ = ["SharedFolderTransport", "SharedMemoryTransport"]

_MEMORY_FOLDER = Path("/dev/shm")
# Waits for the end of its standard input, which comes when this process ends in whatever way.
_REMOVE_AT_THE_END = 'read -r _; rm -rf -- "$0"'


class SharedMemoryTransport(WeightTransport):
    """Anonymous memory that servers map through this process's descriptor in /proc (same machine, same user).

    The order names one version. While a server loads it, the next one goes into the other buffer; the one after that
    overwrites it, which the server notices (``SharedVersion``) and answers with an error.
    """

    way: ClassVar[str] = "shared_memory"

    def __init__(self, layout: TensorLayout) -> None:
        super().__init__(layout)
        self._shared = SharedWeights.of_layout(layout)

    @property
    def version(self) -> int | None:
        """See ``Staging.version``."""
        return self._shared.version

    def begin(self, version: int) -> OpenWrite:
        """See ``Staging.begin``."""
        return self._shared.begin(version)

    def finish(self, write: OpenWrite, sums: Mapping[str, int]) -> None:
        """See ``Staging.finish``. Readers find the sums in the memory itself."""
        self._shared.finish(write, sums)

    def abandon(self, write: OpenWrite) -> None:
        """See ``Staging.abandon``."""
        self._shared.abandon(write)

    def load_order(self) -> Order:
        """See ``WeightTransport.load_order``."""
        if self._shared.version is None:
            raise EngineError("no weights have been written yet")
        return {
            "way": self.way,
            "path": f"/proc/{os.getpid()}/fd/{self._shared.fd}",
            "key": self._shared.key,
            "specs": specs_to_json(self.layout.specs),
            "version": self._shared.version,
        }

    def close(self) -> None:
        """See ``WeightTransport.close``. Servers that still map the memory keep it until they end."""
        self._shared.close()


class SharedFolderTransport(DiskTransport):
    """Model folders in a private folder on /dev/shm, for servers that load nothing but files.

    The folder goes with ``close``, and when this process is killed.
    """

    way: ClassVar[str] = "shared_memory"

    def __init__(self, layout: TensorLayout, model_path: str | None = None) -> None:
        if not _MEMORY_FOLDER.is_dir():
            raise EngineError(f"{_MEMORY_FOLDER} is not there; use rollout.server.weights=disk")
        self._root = Path(tempfile.mkdtemp(prefix="areal_x-weights-", dir=_MEMORY_FOLDER))
        # Its own session: an interrupt from the keyboard must not end it before this process has ended.
        self._remover = subprocess.Popen(
            ["/bin/sh", "-c", _REMOVE_AT_THE_END, str(self._root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        super().__init__(layout, self._root, model_path)

    def close(self) -> None:
        """See ``WeightTransport.close``."""
        super().close()
        shutil.rmtree(self._root, ignore_errors=True)
        assert self._remover.stdin is not None
        self._remover.stdin.close()
        self._remover.wait()
