"""Two buffers of weights in shared memory, and how a reader gets one whole version out of them.

The memory is an anonymous file (no name, so nothing is left behind however a process ends) with a header and two
buffers, each holding every tensor once. The writer fills the buffer that is not the newest and names it newest last.

Safety rests on a sequence number per buffer: odd while the buffer is written, raised again when it is complete. A
reader that finds it odd, or changed after its copy, throws the copy away. Progress rests on claims: a reader says which
buffer it copies, and the writer takes the other one, so a reader that is slower than the writer is not overtaken for
ever. A claim left by a dead reader costs at most the double buffering, never a torn copy. Readers outside this
library's own processes map the memory without write access and so make no claims: they take the version that they were
told or none.

This module runs inside inference servers, too: of this package it imports ``samples`` alone.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from areal_x.engine.transfer.samples import sample, sample_sums

__all__ = [
    "CLAIMS",
    "KEY",
    "LATEST",
    "MAX_READERS",
    "SEQUENCE",
    "VERSION",
    "BufferReader",
    "SharedBuffers",
    "SharedMemoryError",
    "SharedVersion",
    "TensorSpec",
    "fence",
    "specs_from_json",
    "specs_to_json",
]

LATEST, SEQUENCE, VERSION, KEY, CLAIMS = 0, 1, 3, 5, 8
"""Word offsets in the header: the newest buffer or -1; of both buffers the sequence number and the version; a random
number that tells this memory from any other; who reads which buffer."""
MAX_READERS = 56
_NUM_WORDS = CLAIMS + MAX_READERS
_ALIGNMENT = 64

_fence_lock = threading.Lock()


def fence() -> None:
    """Order the stores before this point before those after it (a lock is a barrier on every architecture)."""
    with _fence_lock:
        pass


class SharedMemoryError(RuntimeError):
    """No whole version could be read; what was copied so far is torn."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and type of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def specs_to_json(specs: Sequence[TensorSpec]) -> list[list[Any]]:
    """``[name, shape, dtype]`` of each tensor, for JSON."""
    return [[spec.name, list(spec.shape), str(spec.dtype).removeprefix("torch.")] for spec in specs]


def specs_from_json(found: Sequence[Sequence[Any]]) -> list[TensorSpec]:
    """The inverse of ``specs_to_json``.

    Raises:
        SharedMemoryError: a type that torch does not have.
    """
    specs = []
    for name, shape, dtype_name in found:
        dtype = getattr(torch, str(dtype_name), None)
        if not isinstance(dtype, torch.dtype):
            raise SharedMemoryError(f"weight {name!r} has the type {dtype_name!r}, which torch does not have")
        specs.append(TensorSpec(str(name), tuple(int(size) for size in shape), dtype))
    return specs


class SharedBuffers:
    """The mapped file: a header of 64-bit words and two buffers of tensors.

    Args:
        fd: of the file; a writer's and a claiming reader's must be writable.
        specs: the tensors of one buffer.
        private: map the tensors copy-on-write, so that whoever gets them cannot change the writer's.
    """

    def __init__(self, fd: int, specs: Sequence[TensorSpec], private: bool = False) -> None:
        self.specs = tuple(specs)
        offsets: list[int] = []
        num_words = _NUM_WORDS + 2 * len(self.specs)
        end = -(-num_words * 8 // _ALIGNMENT) * _ALIGNMENT
        for _ in range(2):
            for spec in self.specs:
                offsets.append(end)
                end += -(-spec.num_bytes // _ALIGNMENT) * _ALIGNMENT
        size = os.fstat(fd).st_size
        if size < end:
            if private:
                raise SharedMemoryError(f"the shared memory has {size} bytes, the weights need {end}")
            os.ftruncate(fd, end)
        if private:
            # The header of its own: a page that was once changed through a private mapping shows no later write.
            header = mmap.mmap(fd, num_words * 8, access=mmap.ACCESS_READ)
            self._memory = mmap.mmap(fd, end, access=mmap.ACCESS_COPY)
        else:
            header = self._memory = mmap.mmap(fd, end)
        words: npt.NDArray[np.int64] = np.frombuffer(header, np.int64, num_words)
        self.words = words[:_NUM_WORDS]
        self.sums = words[_NUM_WORDS:].reshape(2, -1)
        """Of both buffers, the checksum of each tensor's samples."""
        self.offsets = (offsets[: len(self.specs)], offsets[len(self.specs) :])
        """Of both buffers, where each tensor begins."""
        views = [self._view(spec, offset) for spec, offset in zip(self.specs * 2, offsets, strict=True)]
        count = len(self.specs)
        self.buffers = tuple(
            {spec.name: view for spec, view in zip(self.specs, views[start : start + count], strict=True)}
            for start in (0, count)
        )

    def wrong_tensor(self, buffer: int, version: int) -> str | None:
        """Name of a tensor in ``buffer`` that is not what was written as ``version``; ``None`` when all are."""
        found = sample_sums([sample(name, version, view) for name, view in self.buffers[buffer].items()])
        for spec, ours, theirs in zip(self.specs, found, self.sums[buffer].tolist(), strict=True):
            if ours != theirs:
                return spec.name
        return None

    def _view(self, spec: TensorSpec, offset: int) -> torch.Tensor:
        if not spec.num_bytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        count = math.prod(spec.shape)
        return torch.frombuffer(self._memory, dtype=spec.dtype, count=count, offset=offset).view(spec.shape)


class BufferReader:
    """Copies the newest version, whichever that is; claims the buffer that it copies."""

    def __init__(self, fd: int, specs: Sequence[TensorSpec], reader_index: int) -> None:
        self._shared = SharedBuffers(fd, specs)
        self._claim = CLAIMS + reader_index
        self.specs = self._shared.specs
        self.num_torn = 0
        """Copies thrown away because the writer overtook them."""

    def copy_into(
        self, targets: Mapping[str, torch.Tensor], minimum_version: int, timeout_seconds: float = 10.0
    ) -> int:
        """Copy the newest complete version into ``targets`` (types are cast); return that version.

        The targets hold torn values when this raises, so nothing may be computed with them afterwards.

        Raises:
            SharedMemoryError: no complete version as new as ``minimum_version`` could be copied in time, or a tensor
                is not what was written.
        """
        deadline = time.monotonic() + timeout_seconds
        words = self._shared.words
        try:
            while True:
                version = self._try_copy(targets, minimum_version)
                if version is not None:
                    return version
                if time.monotonic() > deadline:
                    raise SharedMemoryError(
                        f"weights of version {minimum_version} did not appear in shared memory within "
                        f"{timeout_seconds:g} s; write them before update_weights"
                    )
                # The retry of a sequence lock, not a wait for an event: yields to a writer that shares this core.
                os.sched_yield()
        finally:
            words[self._claim] = 0

    def _try_copy(self, targets: Mapping[str, torch.Tensor], minimum_version: int) -> int | None:
        words = self._shared.words
        latest = int(words[LATEST])
        if latest < 0:
            return None
        words[self._claim] = latest + 1
        fence()
        sequence = int(words[SEQUENCE + latest])
        version = int(words[VERSION + latest])
        if sequence % 2 or version < minimum_version:
            return None
        fence()
        wrong = self._shared.wrong_tensor(latest, version)
        for name, source in self._shared.buffers[latest].items():
            targets[name].copy_(source)
        fence()
        if int(words[SEQUENCE + latest]) != sequence:
            self.num_torn += 1
            return None
        if wrong is not None:
            raise SharedMemoryError(f"weight {wrong!r} in shared memory is not what was written as version {version}")
        return version


class SharedVersion:
    """One version of another process's shared weights, for a ``with`` statement around their use.

    The tensors are views, nothing is copied. The end of the statement checks that they were whole all the while: when
    it raises, whatever was made of them is torn and must be loaded again before it is used.

    Args:
        order: what ``SharedMemoryTransport.load_order`` says: the path of the memory, its layout, the version.
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.version = int(order["version"])
        path = str(order["path"])
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SharedMemoryError(
                f"the shared weights at {path} cannot be opened ({error.strerror}): the trainer has ended, or it runs "
                f"on another machine or as another user; rollout.server.weights=disk works there"
            ) from error
        try:
            self._shared = SharedBuffers(fd, specs_from_json(order["specs"]), private=True)
        finally:
            os.close(fd)
        if int(self._shared.words[KEY]) != int(order["key"]):
            raise SharedMemoryError(f"{path} is not the memory that was meant; its process has ended")
        self._buffer, self._sequence = self._find()

    def _find(self) -> tuple[int, int]:
        words = self._shared.words
        # The newest first: the other one may hold what was staged under this version before.
        latest = max(int(words[LATEST]), 0)
        for buffer in (latest, 1 - latest):
            sequence = int(words[SEQUENCE + buffer])
            fence()
            # Sequence 0: never written. The version is read between two looks at the sequence, as the tensors are.
            if sequence and sequence % 2 == 0 and int(words[VERSION + buffer]) == self.version:
                fence()
                if int(words[SEQUENCE + buffer]) == sequence:
                    return buffer, sequence
        raise SharedMemoryError(f"version {self.version} is not in shared memory (any more); ask for the newest")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and view of each tensor.

        Raises:
            SharedMemoryError: a tensor is not what was written; before the first is given.
        """
        wrong = self._shared.wrong_tensor(self._buffer, self.version)
        if wrong is not None and int(self._shared.words[SEQUENCE + self._buffer]) == self._sequence:
            raise SharedMemoryError(f"weight {wrong!r} in shared memory is not what was written; load again")
        yield from self._shared.buffers[self._buffer].items()

    def __enter__(self) -> SharedVersion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fence()
        if error is None and int(self._shared.words[SEQUENCE + self._buffer]) != self._sequence:
            raise SharedMemoryError(f"version {self.version} was overwritten while it was read; load again")
