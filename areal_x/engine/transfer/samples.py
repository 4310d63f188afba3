"""Checksums of a few samples of each tensor: cheap enough for every update, and they find what an update gets wrong.

Of each tensor, or each rank's rows of it, the first elements, the last and some in the middle are looked at; the middle
is another place in each version. Rows at a wrong place, of an older version, torn or of another type differ there.

This module runs inside inference servers, too: it imports nothing of this package.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

__all__ = ["SampleError", "checked", "sample", "sample_sums", "sampled_ranges"]

_WINDOW = 256


class SampleError(RuntimeError):
    """A tensor is not what was written."""


def sampled_ranges(name: str, version: int, count: int) -> list[tuple[int, int]]:
    """Which of a tensor's ``count`` elements are looked at in this version, as ranges in their order."""
    if count <= 3 * _WINDOW:
        return [(0, count)]
    room = count - 3 * _WINDOW + 1
    middle = _WINDOW + zlib.crc32(f"{version} {name}".encode()) % room
    return [(0, _WINDOW), (middle, middle + _WINDOW), (count - _WINDOW, count)]


def sample(name: str, version: int, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy of the sampled elements, as ``dtype``, in bytes; on the tensor's device."""
    flat = tensor.reshape(-1)
    pieces = [flat[start:stop] for start, stop in sampled_ranges(name, version, math.prod(tensor.shape))]
    if dtype is not None and dtype != tensor.dtype:
        pieces = [piece.to(dtype) for piece in pieces]
    return torch.cat([piece.contiguous().view(torch.uint8) for piece in pieces])


def sample_sums(samples: Sequence[torch.Tensor]) -> list[int]:
    """The checksum of each sample. They come from a device in one copy."""
    if not samples:
        return []
    data = torch.cat(list(samples)).cpu().numpy().data
    sums, start = [], 0
    for piece in samples:
        sums.append(zlib.crc32(data[start : start + len(piece)]))
        start += len(piece)
    return sums


def checked(
    named: Iterable[tuple[str, torch.Tensor]], sums: Mapping[str, int], version: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on; raise at their end unless each is what was written as ``version``.

    Raises:
        SampleError: a tensor differs. Those that were passed on must not be used.
    """
    names, samples = [], []
    for name, tensor in named:
        names.append(name)
        samples.append(sample(name, version, tensor))
        yield name, tensor
    for name, found in zip(names, sample_sums(samples), strict=True):
        if sums.get(name) != found:
            raise SampleError(f"weight {name!r} is not what the trainer wrote as version {version}; load again")
