"""One flat buffer for packed tensors: on a device, or in memory of this machine where ranks can write, too."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Sequence

import numpy as np
import torch

from areal_x.engine.transfer.broadcast_group import views_of
from areal_x.engine.transfer.shared_buffers import TensorSpec
from areal_x.engine.transfer.staging import OpenWrite
from areal_x.engine.transfer.weight_rows import WriteOrder
from areal_x.engine.transfer.write_target import anonymous_file, memory_target

__all__ = ["FlatMemory"]


class FlatMemory:
    """The buffer.

    Args:
        flat: its bytes.
        fd: of the memory, when other processes can map it; closed by ``close``.
    """

    def __init__(self, flat: torch.Tensor, fd: int | None) -> None:
        self.flat = flat
        self._fd = fd

    @classmethod
    def shared(cls, num_bytes: int) -> FlatMemory:
        """Memory of this machine without a name."""
        fd = anonymous_file("areal_x-packed")
        os.ftruncate(fd, max(1, num_bytes))
        mapped = np.frombuffer(mmap.mmap(fd, max(1, num_bytes)), np.uint8)
        return cls(torch.from_numpy(mapped)[:num_bytes], fd)

    def open(self, order: WriteOrder, packed: Sequence[TensorSpec]) -> OpenWrite:
        """The buffer as the place for a version.

        Args:
            packed: the order's tensors, in the order in which they lie here.
        """
        target = None
        if self._fd is not None:
            ends = itertools.accumulate(spec.num_bytes for spec in packed)
            offsets = {spec.name: end - spec.num_bytes for spec, end in zip(packed, ends, strict=True)}
            target = memory_target(order, self._fd, [offsets[spec.name] for spec in order.specs])
        return OpenWrite(order, dict(views_of(self.flat, packed)), target)

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last process that maps it ends. Safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
