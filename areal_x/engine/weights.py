"""Weights on their way out of the trainer: shared memory for engines on this machine, and the step that publishes.

``engine/transfer/shared_buffers.py`` has the layout of the memory and the reader's half of its protocol.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from areal_x.api.engine_api import InferenceEngine
from areal_x.api.errors import EngineError
from areal_x.engine.transfer.layout import TensorLayout
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
from areal_x.engine.transfer.staging import OpenWrite, Staging, WeightSource
from areal_x.engine.transfer.transport import WeightTransport
from areal_x.engine.transfer.write_target import anonymous_file, memory_target

__all__ = ["SharedWeights", "StagedSync", "TensorSpec", "WeightsHandle", "WeightsReader"]

_INLINE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """What another process needs to attach: an inherited descriptor, the layout and its own claim word."""

    fd: int
    specs: tuple[TensorSpec, ...]
    reader_index: int


class SharedWeights(Staging):
    """The writer's side: one process begins and ends versions, any number of engines read.

    Args:
        fd: of an empty file without a name; closed by ``close``.
    """

    def __init__(self, fd: int, layout: TensorLayout) -> None:
        super().__init__(layout)
        self._fd = fd
        self._shared = SharedBuffers(fd, layout.specs)
        self._shared.words[LATEST] = -1
        self._shared.words[KEY] = secrets.randbits(62)
        self._num_readers = 0
        self._write_lock = threading.Lock()
        self._target = 0
        """The buffer that is written."""

    @classmethod
    def create(
        cls, named_tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None = None
    ) -> SharedWeights:
        """Allocate room for two copies of these tensors; nothing is published yet.

        Args:
            named_tensors: names, shapes and types to hold; tied tensors once, under any of their names.
            dtype: type to hold them in; writing casts. Default: each tensor's own.
        """
        return cls.of_layout(TensorLayout(named_tensors, dtype))

    @classmethod
    def of_layout(cls, layout: TensorLayout) -> SharedWeights:
        """As ``create``, for the tensors of a layout."""
        fd = anonymous_file("areal_x-weights")
        try:
            return cls(fd, layout)
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

    def begin(self, version: int) -> OpenWrite:
        """See ``Staging.begin``. A second writer waits for the first to end."""
        self._write_lock.acquire()
        words = self._shared.words
        self._target = target = self._choose_target()
        if int(words[LATEST]) == target:
            words[LATEST] = 1 - target
        # An odd number here is what a write that was interrupted half-way left behind.
        words[SEQUENCE + target] = (int(words[SEQUENCE + target]) + 1) | 1
        fence()
        order = self.layout.order(version)
        return OpenWrite(
            order, self._shared.buffers[target], memory_target(order, self._fd, self._shared.offsets[target])
        )

    def finish(self, write: OpenWrite, sums: Mapping[str, int]) -> None:
        """See ``Staging.finish``."""
        words, target = self._shared.words, self._target
        self._shared.sums[target] = [sums.get(spec.name, 0) for spec in self._shared.specs]
        words[VERSION + target] = write.order.version
        fence()
        words[SEQUENCE + target] += 1
        fence()
        words[LATEST] = target
        self._write_lock.release()

    def abandon(self, write: OpenWrite) -> None:
        """See ``Staging.abandon``."""
        self._write_lock.release()

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


class StagedSync:
    """Publishes the trainer's weights to engines (the ``WeightSync`` contract).

    Args:
        source: the trainer's live weights.
        staging: holds a copy of them while the trainer changes them again.
        engines: those that ``publish`` tells.
    """

    def __init__(
        self,
        source: WeightSource,
        staging: Staging,
        engines: Sequence[InferenceEngine],
    ) -> None:
        self._source = source
        self._staging = staging
        self._engines = tuple(engines)
        # With a transport, servers that join again load what is staged, at any time: it must not change under them.
        self._one_at_a_time = staging.lock if isinstance(staging, WeightTransport) else asyncio.Lock()
        self.stage_seconds = 0.0
        """Time that the last staging took."""

    async def stage(self, version: int) -> None:
        """Copy the weights out as ``version``; they may change again once this returns.

        It is done in a thread, so that the event loop goes on, but for 16 MiB or less of this process into shared
        memory. A second call waits for the first, and for servers that are loading. Cancelled, it returns only when the
        copy has ended: until then the weights must not change.

        Raises:
            EngineError: see ``Staging.stage``.
        """
        async with self._one_at_a_time:
            started = time.monotonic()
            is_short = isinstance(self._staging, SharedWeights) and self._staging.num_bytes <= _INLINE_BYTES
            if is_short and self._source.is_here:
                self._staging.stage(version, self._source)
            else:
                await _on_thread(lambda: self._staging.stage(version, self._source))
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
