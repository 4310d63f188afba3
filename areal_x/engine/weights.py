"""Weights on their way out of the trainer: shared memory for engines on this machine, and the step that publishes.

``engine/transfer/shared_buffers.py`` has the layout of the memory and the reader's half of its protocol.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from areal_x.api.engine_api import InferenceEngine
from areal_x.api.errors import EngineError
from areal_x.engine.transfer.shared_buffers import (
    CLAIMS,
    KEY,
    LATEST,
    MAX_READERS,
    SEQUENCE,
    VERSION,
    BufferReader,
    SharedBuffers,
    SharedMemoryError,
    TensorSpec,
    fence,
)
from areal_x.engine.transfer.transport import WeightTransport

__all__ = ["SharedWeights", "StagedSync", "Staging", "TensorSpec", "WeightsHandle", "WeightsReader"]

_INLINE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """What another process needs to attach: an inherited descriptor, the layout and its own claim word."""

    fd: int
    specs: tuple[TensorSpec, ...]
    reader_index: int


class SharedWeights:
    """The writer's side: one process writes, any number of engines read."""

    def __init__(self, fd: int, specs: Sequence[TensorSpec]) -> None:
        self._fd = fd
        self._shared = SharedBuffers(fd, specs)
        self._shared.words[LATEST] = -1
        self._shared.words[KEY] = secrets.randbits(62)
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
        return cls.of_specs(
            [TensorSpec(name, tuple(tensor.shape), dtype or tensor.dtype) for name, tensor in named_tensors]
        )

    @classmethod
    def of_specs(cls, specs: Sequence[TensorSpec]) -> SharedWeights:
        """As ``create``, for tensors of these names, shapes and types."""
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
    def fd(self) -> int:
        """The descriptor of the memory; -1 once closed."""
        return self._fd

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors that it holds."""
        return self._shared.specs

    @property
    def key(self) -> int:
        """A random number in the memory itself, which tells it from any other."""
        return int(self._shared.words[KEY])

    @property
    def num_bytes(self) -> int:
        """Size of one copy of the weights."""
        return sum(spec.num_bytes for spec in self._shared.specs)

    @property
    def version(self) -> int | None:
        """The newest complete version, ``None`` before the first write."""
        latest = int(self._shared.words[LATEST])
        return None if latest < 0 else int(self._shared.words[VERSION + latest])

    def new_reader(self) -> WeightsHandle:
        """A handle for one more reader. A child process must inherit its ``fd``."""
        if self._num_readers == MAX_READERS:
            raise EngineError(f"shared weights serve {MAX_READERS} readers at most")
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
            if int(words[LATEST]) == target:
                words[LATEST] = 1 - target
            # An odd number here is what a write that was interrupted half-way left behind.
            sequence = (int(words[SEQUENCE + target]) + 1) | 1
            words[SEQUENCE + target] = sequence
            fence()
            for name, tensor in tensors.items():
                self._shared.buffers[target][name].copy_(tensor.detach())
            words[VERSION + target] = version
            fence()
            words[SEQUENCE + target] = sequence + 1
            fence()
            words[LATEST] = target

    def _choose_target(self) -> int:
        words = self._shared.words
        latest = int(words[LATEST])
        if latest < 0:
            return 0
        claims = words[CLAIMS : CLAIMS + self._num_readers]
        older_is_claimed = bool((claims == 2 - latest).any())
        newest_is_claimed = bool((claims == latest + 1).any())
        older_is_complete = int(words[SEQUENCE + 1 - latest]) % 2 == 0
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


class WeightsReader(BufferReader):
    """The reader's side, in an engine's process."""

    def __init__(self, handle: WeightsHandle) -> None:
        super().__init__(handle.fd, handle.specs, handle.reader_index)

    def copy_into(
        self, targets: Mapping[str, torch.Tensor], minimum_version: int, timeout_seconds: float = 10.0
    ) -> int:
        """See ``BufferReader.copy_into``.

        Raises:
            EngineError: no complete version as new as ``minimum_version`` could be copied in time.
        """
        try:
            return super().copy_into(targets, minimum_version, timeout_seconds)
        except SharedMemoryError as error:
            raise EngineError(str(error)) from error


class Staging(Protocol):
    """Where a version is copied to before engines are told of it: ``SharedWeights`` or a ``WeightTransport``."""

    @property
    def num_bytes(self) -> int:
        """Size of one copy of the weights."""
        ...

    def write(self, version: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy the weights out as ``version``."""
        ...


class StagedSync:
    """Publishes the trainer's weights to engines (the ``WeightSync`` contract).

    Args:
        named_weights: the trainer's live weights.
        staging: holds a copy of them while the trainer changes them again.
        engines: those that ``publish`` tells.
    """

    def __init__(
        self,
        named_weights: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        staging: Staging,
        engines: Sequence[InferenceEngine],
    ) -> None:
        self._named_weights = named_weights
        self._staging = staging
        self._engines = tuple(engines)
        # With a transport, servers that join again load what is staged, at any time: it must not change under them.
        self._one_at_a_time = staging.lock if isinstance(staging, WeightTransport) else asyncio.Lock()
        self.stage_seconds = 0.0
        """Time that the last staging took."""

    async def stage(self, version: int) -> None:
        """Copy the weights out as ``version``; they may change again once this returns.

        It is done in a thread, so that the event loop goes on, but for 16 MiB or less into shared memory. A second call
        waits for the first, and for servers that are loading. Cancelled, it returns only when the copy has ended: until
        then the weights must not change.
        """
        async with self._one_at_a_time:
            started = time.monotonic()
            if isinstance(self._staging, SharedWeights) and self._staging.num_bytes <= _INLINE_BYTES:
                self._staging.write(version, self._named_weights())
            else:
                await _on_thread(lambda: self._staging.write(version, self._named_weights()))
            self.stage_seconds = time.monotonic() - started

    async def publish(self, version: int) -> None:
        """Return when every engine samples from the staged ``version``; requests in flight go on."""
        await asyncio.gather(*(engine.update_weights(version) for engine in self._engines))


async def _on_thread(work: Callable[[], None]) -> None:
    """Run ``work`` on a thread; a thread cannot be cancelled, so a cancellation waits for its end."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        # Marks an error as seen: the cancellation is what the caller gets.
        if not running.cancelled():
            running.exception()
        raise
