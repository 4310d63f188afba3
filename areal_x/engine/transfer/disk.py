"""Weights as model folders of safetensors files: the way that every server knows, on any host that sees the folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.safetensors_folder import FolderWriter, copy_model_files
from areal_x.engine.transfer.staging import OpenWrite
from areal_x.engine.transfer.transport import Order, WeightTransport

__all__ = ["DiskTransport", "FolderTransport", "VersionFolders"]

_NUM_KEPT = 2


class VersionFolders:
    """One folder for each version under ``root``, which is made when it is not there; the newest two stay.

    A server that still reads a folder when it goes keeps the files that it has open, and gets an error for those that
    it has not: no file is ever written a second time, so none is read torn.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._folders: list[Path] = []
        self._num_made = 0
        self.version: int | None = None
        """The newest version."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"{self._root}, the folder for weights, cannot be made: {error.strerror}") from error

    @property
    def newest(self) -> Path:
        """The folder of the newest version.

        Raises:
            EngineError: there is none yet.
        """
        if not self._folders:
            raise EngineError("no weights have been written yet")
        return self._folders[-1]

    def next(self, version: int) -> Path:
        """A path for the next folder; those before the newest are removed to make room."""
        self._keep(_NUM_KEPT - 1)
        # The number makes the name new even when a version is staged again, as after a restart from a checkpoint.
        self._num_made += 1
        return self._root / f"v{version}-{os.getpid()}-{self._num_made}"

    def add(self, version: int, folder: Path) -> None:
        """``folder`` is complete and the newest."""
        self._folders.append(folder)
        self.version = version

    def _keep(self, number: int) -> None:
        while len(self._folders) > number:
            shutil.rmtree(self._folders.pop(0), ignore_errors=True)

    def remove(self) -> None:
        """Remove all folders, and ``root`` if nothing else is in it. Safe to call twice."""
        self._keep(0)
        try:
            self._root.rmdir()
        except OSError:
            return


class FolderTransport(WeightTransport):
    """Each version is a new folder of safetensors files.

    Args:
        layout: what is written.
        directory: where to. Servers, and ranks, must see it under the same path.
        stem: how the files' names begin.
    """

    def __init__(self, layout: TensorLayout, directory: Path, stem: str = "model") -> None:
        super().__init__(layout)
        self._folders = VersionFolders(directory)
        self._stem = stem
        self._writer: FolderWriter | None = None
        self._sums: Mapping[str, int] = {}

    @property
    def version(self) -> int | None:
        """See ``Staging.version``."""
        return self._folders.version

    def begin(self, version: int) -> OpenWrite:
        """See ``Staging.begin``.

        Raises:
            EngineError: there is no space, or the folder cannot be made.
        """
        order = self.layout.order(version)
        self._writer = FolderWriter(self._folders.next(version), order, stem=self._stem)
        return OpenWrite(order, None, self._writer.target)

    def finish(self, write: OpenWrite, sums: Mapping[str, int]) -> None:
        """See ``Staging.finish``."""
        assert self._writer is not None
        writer, self._writer = self._writer, None
        writer.finish(self.add_files)
        self._sums = sums
        self._folders.add(write.order.version, writer.folder)

    def add_files(self, folder: Path) -> None:
        """Write what a version has beside its tensors."""
        raise NotImplementedError

    def abandon(self, write: OpenWrite) -> None:
        """See ``Staging.abandon``."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def close(self) -> None:
        """Remove all folders. Safe to call twice."""
        self._folders.remove()


class DiskTransport(FolderTransport):
    """Each version is a new model folder.

    Args:
        layout: what is written.
        directory: where to. Servers must see it under the same path.
        model_path: its configuration and tokenizer are copied into each folder. Default: weights alone.
    """

    way: ClassVar[str] = "disk"

    def __init__(self, layout: TensorLayout, directory: Path, model_path: str | None = None) -> None:
        super().__init__(layout, directory)
        self._model_path = model_path if model_path is not None and os.path.isdir(model_path) else None

    def add_files(self, folder: Path) -> None:
        """See ``FolderTransport.add_files``."""
        if self._model_path is not None:
            copy_model_files(self._model_path, folder)

    def load_order(self) -> Order:
        """See ``WeightTransport.load_order``."""
        path = str(self._folders.newest)
        return {"way": "disk", "path": path, "version": self._folders.version, "sums": dict(self._sums)}
