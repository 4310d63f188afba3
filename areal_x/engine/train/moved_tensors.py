"""Tensors that leave a device in place, for models that are trained or sharded.

An optimiser and FSDP refer to the very parameters, so these stay the objects that they are: their memory is emptied
(``resize_(0)``, as FSDP itself frees what it gathered) and filled again. Whole storages are moved, with the padding
that FSDP keeps behind a rank's rows; what shares a storage moves once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.train.sharding import free_gathered, local_rows
from areal_x.engine.train.weights_home import KeptWeights, WeightsHome, lay_out

__all__ = ["MovedTensors", "make_home", "present"]


def make_home(module: torch.nn.Module, device: torch.device, *, offload: bool) -> WeightsHome:
    """Where the weights of ``module`` rest; with ``offload`` they leave the device. Call ``renew`` after changes."""
    for parameter in module.parameters():
        # What a file was read into cannot be resized; and sums run in another order where memory is aligned otherwise,
        # so kept weights, too, get memory of their own: both give the same bits.
        if not local_rows(parameter)[0].untyped_storage().resizable():
            parameter.data = parameter.data.clone()
    if not offload:
        return KeptWeights()
    home = MovedTensors(module.parameters, device, changes=False)
    home.release()
    return home


@contextlib.contextmanager
def present(home: WeightsHome, module: torch.nn.Module) -> Iterator[None]:
    """The weights of ``module`` are on the device while the body runs, and rest afterwards."""
    home.fetch()
    home.wait()
    try:
        yield
    finally:
        free_gathered(module)
        home.release()


class MovedTensors(WeightsHome):
    """Tensors on a device, whose bytes rest in one pinned block of the host's memory; those of a CPU in a temporary
    file (``TMPDIR``), so that its memory is free for others.

    Args:
        tensors: gives all of them; asked each time that they leave: an optimiser's state appears with its first step.
        changes: whether they may be other values each time that they leave.
    """

    def __init__(
        self, tensors: Callable[[], Iterable[torch.Tensor]], device: torch.device, *, changes: bool = True
    ) -> None:
        self._tensors, self._device, self._changes = tensors, device, changes
        self._is_new = True
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._away: list[tuple[torch.UntypedStorage, int, int]] = []
        self._pinned: torch.Tensor | None = None
        self._file: IO[bytes] | None = None
        self._num_bytes = 0

    @torch.no_grad()
    def release(self) -> None:
        """Copy out what is new and empty the storages; no pass may be under way."""
        if self._away:
            return
        storages = list(self._storages())
        if not storages:
            return
        places, total = lay_out([storage.nbytes() for storage in storages])
        if self._changes or self._is_new:
            block = self._block(total)
            for storage, (start, end) in zip(storages, places, strict=True):
                block[start:end].copy_(_bytes_of(storage))
        self._is_new = False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for storage, (start, end) in zip(storages, places, strict=True):
            storage.resize_(0)
            self._away.append((storage, start, end))
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def fetch(self) -> None:
        """Start copying everything back, on a stream of its own."""
        if not self._away:
            return
        block = self._block(self._num_bytes)
        if self._stream is not None:
            # The memory may have been another tensor's, whose last use is still queued on this stream.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for storage, start, end in self._away:
                storage.resize_(end - start)
                _bytes_of(storage).copy_(block[start:end], non_blocking=True)
        self._away = []

    def wait(self) -> None:
        """Wait for the copies."""
        self.fetch()
        if self._stream is not None:
            self._stream.synchronize()

    def renew(self) -> None:
        """See ``WeightsHome.renew``."""
        self._is_new = True

    def _storages(self) -> Iterator[torch.UntypedStorage]:
        """Each storage once, of the tensors that are on the device."""
        seen: set[int] = set()
        for tensor in self._tensors():
            rows = local_rows(tensor)[0]
            storage = rows.untyped_storage()
            if rows.device.type == self._device.type and storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage

    def _block(self, num_bytes: int) -> torch.Tensor:
        """The bytes at rest; a file is mapped for as long as the result lives.

        Raises:
            EngineError: the disk has no room for the file.
        """
        grown, self._num_bytes = num_bytes > self._num_bytes, max(num_bytes, self._num_bytes)
        if self._device.type == "cuda":
            if self._pinned is None or grown:
                self._pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
            return self._pinned
        if self._file is None:
            # Open for as long as this object lives; it has no name in the file system.
            self._file = tempfile.TemporaryFile(prefix="areal_x_")  # noqa: SIM115
        try:
            # Writing to a map of blocks that the disk does not have would be a signal, not an error.
            os.posix_fallocate(self._file.fileno(), 0, max(1, self._num_bytes))
        except OSError as error:
            raise EngineError(
                f"offload: {self._num_bytes / 2**20:.0f} MiB of weights do not fit {tempfile.gettempdir()} "
                f"({error.strerror}); set TMPDIR to a folder with room, or offload=false"
            ) from error
        return torch.from_file(
            f"/proc/self/fd/{self._file.fileno()}", shared=True, size=self._num_bytes, dtype=torch.uint8
        )


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
