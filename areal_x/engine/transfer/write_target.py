"""Where a version is written to, described so that another process can write there, too.

The description names memory by ``/proc/<pid>/fd/<n>`` or files by their paths, and the place of each tensor in them. It
is small and holds no weights. Memory is mapped and stays so from update to update: the pages of 100 million weights
take longer to map than to fill. Files are written, not mapped: a disk that is full is then an error, and not the end of
the process, and a network's file system keeps the bytes of one writer apart from another's.
"""

from __future__ import annotations

import errno
import functools
import math
import mmap
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.shared_buffers import TensorSpec
from areal_x.engine.transfer.weight_rows import Sink, ViewSink, WriteOrder

__all__ = ["FileSink", "Place", "WriteTarget", "anonymous_file", "machine", "memory_target", "open_target"]

_PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor begins: in which of a target's files, and how many bytes after its beginning."""

    file: int
    offset: int


@dataclass(frozen=True, slots=True)
class WriteTarget:
    """Room for one version.

    Args:
        order: what is to be written.
        paths: of the files.
        places: of each of the order's tensors.
        machine: on which the paths stand for memory; ``None``: they are files, for all who see them.
        identity: device, node and size of the memory, which tell it from any other under the same path.
    """

    order: WriteOrder
    paths: tuple[str, ...]
    places: tuple[Place, ...]
    machine: str | None = None
    identity: tuple[int, int, int] | None = None


def anonymous_file(name: str) -> int:
    """The descriptor of a new empty file without a name, in memory where that is possible."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def machine() -> str:
    """What tells this machine from others, for as long as it runs."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def memory_target(order: WriteOrder, fd: int, offsets: Iterable[int]) -> WriteTarget:
    """The target that is this process's memory ``fd``, with the offset of each tensor."""
    status = os.fstat(fd)
    return WriteTarget(
        order,
        (f"/proc/{os.getpid()}/fd/{fd}",),
        tuple(Place(0, offset) for offset in offsets),
        machine(),
        (status.st_dev, status.st_ino, status.st_size),
    )


@contextmanager
def open_target(target: WriteTarget) -> Iterator[Sink]:
    """The target as this process writes it.

    Raises:
        EngineError: it is memory of another machine or of a process that has ended, or a file cannot be opened.
    """
    if target.machine is None:
        with ExitStack() as stack:
            yield FileSink(target, stack)
        return
    yield ViewSink(_views(_mapped(target), target))


def _mapped(target: WriteTarget) -> torch.Tensor:
    assert target.identity is not None
    (path,) = target.paths
    if target.machine != machine():
        raise EngineError("the memory for new weights is on another machine than this rank")
    try:
        return _map(path, target.identity)
    except OSError as error:
        raise EngineError(f"the memory for new weights at {path} cannot be opened: {error.strerror}") from error


# The two that alternate in a broadcast, or the one that holds both copies.
@functools.lru_cache(maxsize=2)
def _map(path: str, identity: tuple[int, int, int]) -> torch.Tensor:
    """All bytes of the memory; raises OSError when it is not what was meant."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino, status.st_size) != identity:
            raise OSError(0, "it is not the memory that was meant; the process that made it has ended")
        return torch.from_numpy(np.frombuffer(mmap.mmap(fd, status.st_size), np.uint8))
    finally:
        os.close(fd)


def _views(flat: torch.Tensor, target: WriteTarget) -> dict[str, torch.Tensor]:
    return {
        spec.name: flat[place.offset : place.offset + spec.num_bytes].view(spec.dtype).view(spec.shape)
        for spec, place in zip(target.order.specs, target.places, strict=True)
    }


class FileSink(Sink):
    """Files, which are there already and are filled at the places of the rows.

    Args:
        stack: closes them.
    """

    def __init__(self, target: WriteTarget, stack: ExitStack) -> None:
        self._places = dict(zip((spec.name for spec in target.order.specs), target.places, strict=True))
        self._paths = target.paths
        self._fds = []
        for number, path in enumerate(target.paths):
            with self._explained(number):
                self._fds.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            stack.callback(self._close, number)

    def _close(self, file: int) -> None:
        # Some file systems say only here that there is no space.
        with self._explained(file):
            os.close(self._fds[file])

    def put(self, spec: TensorSpec, first_row: int, rows: torch.Tensor) -> None:
        """See ``Sink.put``. A type that differs is cast piece by piece."""
        place = self._places[spec.name]
        flat = rows.reshape(-1)
        offset = place.offset + first_row * math.prod(spec.shape[1:]) * spec.dtype.itemsize
        for piece in flat.split(_PIECE_BYTES // spec.dtype.itemsize):
            data = piece.to(spec.dtype).cpu().contiguous().view(torch.uint8).numpy()
            self._write_all(place.file, memoryview(data), offset)
            offset += len(data)

    def _write_all(self, file: int, data: memoryview, offset: int) -> None:
        """Write all of it: one call to the kernel takes 2 GiB at most, and less where a limit is near."""
        with self._explained(file):
            while data:
                written = os.pwrite(self._fds[file], data, offset)
                data, offset = data[written:], offset + written

    @contextmanager
    def _explained(self, file: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fix = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise EngineError(f"weights could not be written to {self._paths[file]}: {error.strerror}{fix}") from error

    def read(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        """See ``Sink.read``."""
        place, size = self._places[spec.name], spec.dtype.itemsize
        data = os.pread(self._fds[place.file], (stop - start) * size, place.offset + start * size)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
