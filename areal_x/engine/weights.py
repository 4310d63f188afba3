"""Weights in shared memory: the trainer writes a version, inference engines copy it between two decode steps.

The memory is an anonymous file (no name, so nothing is left behind however a process ends) with a header and two
buffers, each holding every tensor once. The writer fills the buffer that is not the newest and names it newest last.

Safety rests on a sequence number per buffer: odd while the buffer is written, raised again when it is complete. A
reader that finds it odd, or changed after its copy, throws the copy away and takes the newest buffer again. Progress
rests on claims: a reader says which buffer it copies, and the writer takes the other one, so a reader that is slower
than the writer is not overtaken for ever. A claim left by a dead reader costs at most the double buffering, never a
torn copy.
"""

from __future__ import annotations

import asyncio
import math
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.engine_api import InferenceEngine
from areal_x.api.errors import EngineError

__all__ = ["SharedMemorySync", "SharedWeights", "TensorSpec", "WeightsHandle", "WeightsReader"]

_ALIGNMENT = 64
_LATEST, _SEQUENCE, _VERSION, _CLAIMS = 0, 1, 3, 8  # Word offsets in the header.
_MAX_READERS = 56
_HEADER_BYTES = (_CLAIMS + _MAX_READERS) * 8
_INLINE_BYTES = 16 * 2**20

_fence_lock = threading.Lock()


def _fence() -> None:
    """Order the stores before this point before those after it (a lock is a barrier on every architecture)."""
    with _fence_lock:
        pass


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and type of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """What another process needs to attach: an inherited descriptor, the layout and its own claim word."""

    fd: int
    specs: tuple[TensorSpec, ...]
    reader_index: int


class _SharedBuffers:
    """The mapped file: a header of 64-bit words and two buffers of tensors."""

    def __init__(self, fd: int, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        offsets: list[int] = []
        end = _HEADER_BYTES
        for _ in range(2):
            for spec in self.specs:
                offsets.append(end)
                end += -(-spec.num_bytes // _ALIGNMENT) * _ALIGNMENT
        if os.fstat(fd).st_size < end:
            os.ftruncate(fd, end)
        self._memory = mmap.mmap(fd, end)
        self.words: npt.NDArray[np.int64] = np.frombuffer(self._memory, np.int64, _CLAIMS + _MAX_READERS)
        views = [self._view(spec, offset) for spec, offset in zip(self.specs * 2, offsets, strict=True)]
        count = len(self.specs)
        self.buffers = tuple(
            {spec.name: view for spec, view in zip(self.specs, views[start : start + count], strict=True)}
            for start in (0, count)
        )

    def _view(self, spec: TensorSpec, offset: int) -> torch.Tensor:
        if not spec.num_bytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        count = math.prod(spec.shape)
        return torch.frombuffer(self._memory, dtype=spec.dtype, count=count, offset=offset).view(spec.shape)


class SharedWeights:
    """The writer's side: one process writes, any number of engines read."""

    def __init__(self, fd: int, specs: Sequence[TensorSpec]) -> None:
        self._fd = fd
        self._shared = _SharedBuffers(fd, specs)
        self._shared.words[_LATEST] = -1
        self._num_readers = 0
        self._write_lock = threading.Lock()

    @classmethod
    def create(
        cls, named_tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None = None
    ) -> SharedWeights:
        """Allocate room for two copies of these tensors; nothing is published yet.

        Args:
            named_tensors: names, shapes and types to hold; tied tensors once, under any of their names.
            dtype: type to hold them in; writing casts. Default: each tensor's own.
        """
        specs = [TensorSpec(name, tuple(tensor.shape), dtype or tensor.dtype) for name, tensor in named_tensors]
        if len({spec.name for spec in specs}) != len(specs):
            raise EngineError("weights to share name a tensor twice")
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("areal_x-weights", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        try:
            return cls(fd, specs)
        except BaseException:
            os.close(fd)
            raise

    @property
    def num_bytes(self) -> int:
        """Size of one copy of the weights."""
        return sum(spec.num_bytes for spec in self._shared.specs)

    @property
    def version(self) -> int | None:
        """The newest complete version, ``None`` before the first write."""
        latest = int(self._shared.words[_LATEST])
        return None if latest < 0 else int(self._shared.words[_VERSION + latest])

    def new_reader(self) -> WeightsHandle:
        """A handle for one more reader. A child process must inherit its ``fd``."""
        if self._num_readers == _MAX_READERS:
            raise EngineError(f"shared weights serve {_MAX_READERS} readers at most")
        self._num_readers += 1
        return WeightsHandle(self._fd, self._shared.specs, self._num_readers - 1)

    def write(self, version: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write ``version`` and make it the newest. Types are cast to those given at creation.

        All names and shapes are checked before the first byte is written.

        Raises:
            EngineError: a tensor is missing, unknown or of another shape; the newest version stays what it was.
        """
        with self._write_lock:
            tensors = self._checked(named_tensors)
            words = self._shared.words
            target = self._choose_target()
            if int(words[_LATEST]) == target:
                words[_LATEST] = 1 - target
            # An odd number here is what a write that was interrupted half-way left behind.
            sequence = (int(words[_SEQUENCE + target]) + 1) | 1
            words[_SEQUENCE + target] = sequence
            _fence()
            for name, tensor in tensors.items():
                self._shared.buffers[target][name].copy_(tensor.detach())
            words[_VERSION + target] = version
            _fence()
            words[_SEQUENCE + target] = sequence + 1
            _fence()
            words[_LATEST] = target

    def _choose_target(self) -> int:
        words = self._shared.words
        latest = int(words[_LATEST])
        if latest < 0:
            return 0
        claims = words[_CLAIMS : _CLAIMS + self._num_readers]
        older_is_claimed = bool((claims == 2 - latest).any())
        newest_is_claimed = bool((claims == latest + 1).any())
        older_is_complete = int(words[_SEQUENCE + 1 - latest]) % 2 == 0
        if older_is_claimed and older_is_complete and not newest_is_claimed:
            return latest
        return 1 - latest

    def _checked(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        tensors = dict(named_tensors)
        buffer = self._shared.buffers[0]
        for name, tensor in tensors.items():
            target = buffer.get(name)
            if target is None:
                raise EngineError(f"weight {name!r} is not part of the shared weights")
            if target.shape != tensor.shape:
                raise EngineError(f"weight {name!r} has shape {tuple(tensor.shape)}, shared is {tuple(target.shape)}")
        missing = [name for name in buffer if name not in tensors]
        if missing:
            raise EngineError(f"weight {missing[0]!r} was not written ({len(missing)} missing)")
        return tensors

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last process that maps it ends. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class WeightsReader:
    """The reader's side, in an engine's process."""

    def __init__(self, handle: WeightsHandle) -> None:
        self._shared = _SharedBuffers(handle.fd, handle.specs)
        self._claim = _CLAIMS + handle.reader_index
        self.specs = self._shared.specs
        self.num_torn = 0
        """Copies thrown away because the writer overtook them."""

    def copy_into(
        self, targets: Mapping[str, torch.Tensor], minimum_version: int, timeout_seconds: float = 10.0
    ) -> int:
        """Copy the newest complete version into ``targets`` (types are cast); return that version.

        The targets hold torn values when this raises, so nothing may be computed with them afterwards.

        Raises:
            EngineError: no complete version as new as ``minimum_version`` could be copied in time.
        """
        deadline = time.monotonic() + timeout_seconds
        words = self._shared.words
        try:
            while True:
                version = self._try_copy(targets, minimum_version)
                if version is not None:
                    return version
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"weights of version {minimum_version} did not appear in shared memory within "
                        f"{timeout_seconds:g} s; write them before update_weights"
                    )
                # The retry of a sequence lock, not a wait for an event: yields to a writer that shares this core.
                os.sched_yield()
        finally:
            words[self._claim] = 0

    def _try_copy(self, targets: Mapping[str, torch.Tensor], minimum_version: int) -> int | None:
        words = self._shared.words
        latest = int(words[_LATEST])
        if latest < 0:
            return None
        words[self._claim] = latest + 1
        _fence()
        sequence = int(words[_SEQUENCE + latest])
        version = int(words[_VERSION + latest])
        if sequence % 2 or version < minimum_version:
            return None
        _fence()
        for name, source in self._shared.buffers[latest].items():
            targets[name].copy_(source)
        _fence()
        if int(words[_SEQUENCE + latest]) != sequence:
            self.num_torn += 1
            return None
        return version


class SharedMemorySync:
    """Publishes the trainer's weights to engines on this machine (the ``WeightSync`` contract)."""

    def __init__(
        self,
        named_weights: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        shared: SharedWeights,
        engines: Sequence[InferenceEngine],
    ) -> None:
        self._named_weights = named_weights
        self._shared = shared
        self._engines = tuple(engines)
        self.stage_seconds = 0.0
        """Time that the last staging took."""

    async def stage(self, version: int) -> None:
        """Write the weights to shared memory as ``version``; they may change again once this returns.

        Models above 16 MiB are written in a thread, so that the event loop goes on.
        """
        started = time.monotonic()
        if self._shared.num_bytes <= _INLINE_BYTES:
            self._shared.write(version, self._named_weights())
        else:
            await asyncio.to_thread(lambda: self._shared.write(version, self._named_weights()))
        self.stage_seconds = time.monotonic() - started

    async def publish(self, version: int) -> None:
        """Return when every engine samples from the staged ``version``; requests in flight go on."""
        await asyncio.gather(*(engine.update_weights(version) for engine in self._engines))
