"""Rows of weights on their way to where engines read them: each rank copies its own, and no rank sees another's. ::

    LocalWeight (rows of one weight) ──cast, quantize──▶ Sink.put: their place in the served tensor
                                     └─samples─────────▶ WrittenRows: what was written, for the check of the update

Scales of quantized weights span rows of several ranks. Only their absolute maxima travel between ranks, once for all
weights; then each rank casts its rows by the same scales, bit for bit as if it held the whole.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.fp8 import block_absmax, cast_rows, is_linear, scale_name, scales_of
from areal_x.engine.transfer.samples import sample, sample_sums, sampled_ranges
from areal_x.engine.transfer.shared_buffers import TensorSpec

__all__ = [
    "LocalWeight",
    "Ranks",
    "Sink",
    "ViewSink",
    "WriteOrder",
    "WrittenRows",
    "copy_rows",
    "num_rows",
    "owned_part",
    "part_of",
]


@dataclass(frozen=True, slots=True)
class LocalWeight:
    """The rows of one weight that a rank holds.

    Args:
        name: its Hugging Face name.
        shape: of the whole weight.
        dtype: of ``rows``.
        first_row: place of the first one along the first dimension.
        rows: consecutive rows; the whole weight where it is not sharded. May have none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    first_row: int
    rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class WriteOrder:
    """What a version is made of: the tensors as engines get them, in the order of the weights that they come from."""

    version: int
    specs: tuple[TensorSpec, ...]
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """Rows of one served tensor that were written, and the checksum of samples of what they were cast from."""

    name: str
    first_row: int
    num_rows: int
    sum: int


class Ranks(Protocol):
    """What is used of a ``RankContext`` here."""

    @property
    def rank(self) -> int:
        """This rank's number."""
        ...

    @property
    def num_ranks(self) -> int:
        """How many there are."""
        ...

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Maximum over all ranks, element by element."""
        ...


class Sink(ABC):
    """Where rows go."""

    @abstractmethod
    def put(self, spec: TensorSpec, first_row: int, rows: torch.Tensor) -> None:
        """Write rows of a served tensor at their place, cast to its type."""

    @abstractmethod
    def read(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        """Elements of a served tensor, counted from its first, in bytes."""

    def sampled(self, spec: TensorSpec, version: int, first_row: int, rows: int) -> torch.Tensor:
        """What ``sample`` gives for rows that were written."""
        width = math.prod(spec.shape[1:])
        first = first_row * width
        ranges = sampled_ranges(spec.name, version, rows * width)
        return torch.cat([self.read(spec, first + start, first + stop) for start, stop in ranges])


class ViewSink(Sink):
    """Tensors in memory that this process can write."""

    def __init__(self, views: Mapping[str, torch.Tensor]) -> None:
        self._views = views

    def put(self, spec: TensorSpec, first_row: int, rows: torch.Tensor) -> None:
        """See ``Sink.put``."""
        view = self._views[spec.name]
        target = view[first_row : first_row + len(rows)] if spec.shape else view
        target.copy_(rows.reshape(target.shape))

    def read(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        """See ``Sink.read``."""
        return self._views[spec.name].view(-1)[start:stop].view(torch.uint8)


def num_rows(shape: Sequence[int]) -> int:
    """Size of the first dimension; 1 for a scalar."""
    return shape[0] if shape else 1


def part_of(total: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """First row and number of rows of a rank's part of ``total`` rows that are sharded (as ``torch.chunk`` cuts)."""
    size = -(-total // num_ranks)
    first = min(rank * size, total)
    return first, min(first + size, total) - first


def owned_part(weight: LocalWeight, rank: int, num_ranks: int, owner: int = 0) -> tuple[int, int]:
    """First row and number of rows of ``weight`` that ``rank`` has to write, as every rank sees it.

    Args:
        weight: as the asking rank holds it.
        owner: the rank that writes weights that all ranks hold whole.
    """
    total = num_rows(weight.shape)
    of_first = part_of(total, 0, num_ranks)
    # So few rows that the first rank's part is all of them look the same whether they are sharded or not.
    is_everywhere = num_rows(weight.rows.shape) == total and of_first[1] < total
    if is_everywhere:
        return (0, total) if rank == owner else (0, 0)
    return part_of(total, rank, num_ranks)


def copy_rows(
    sink: Sink,
    order: WriteOrder,
    weights: Callable[[], Iterable[LocalWeight]],
    ranks: Ranks,
    owner: int = 0,
    after_each: Callable[[LocalWeight], None] = lambda weight: None,
) -> list[WrittenRows]:
    """Write this rank's rows of all weights. Every rank calls it with the same order.

    Args:
        weights: the live weights, the same names in the same order on each rank; one is held at a time. Asked for
            twice where weights are quantized.
        owner: the rank that writes the weights that all ranks hold.
        after_each: called with each weight when its rows are written.

    Raises:
        EngineError: a weight is none of the order's or has another shape, or is not finite where it is quantized.
    """
    specs = {spec.name: spec for spec in order.specs}
    scales = _shared_scales(order.quantization, weights, ranks) if order.quantization else {}
    written: list[tuple[str, int, int]] = []
    samples: list[torch.Tensor] = []
    for weight in weights():
        _check(weight, specs, ranks, owner)
        if owned_part(weight, ranks.rank, ranks.num_ranks, owner)[1] and weight.rows.numel():
            served = _served(weight, scales.get(weight.name), order.quantization, ranks.rank == owner)
            for name, first_row, rows in served:
                sink.put(specs[name], first_row, rows)
                written.append((name, first_row, num_rows(rows.shape)))
                samples.append(sample(name, order.version, rows, specs[name].dtype))
        after_each(weight)
    sums = sample_sums(samples)
    return [WrittenRows(*rows, found) for rows, found in zip(written, sums, strict=True)]


def _check(weight: LocalWeight, specs: Mapping[str, TensorSpec], ranks: Ranks, owner: int) -> None:
    spec = specs.get(weight.name)
    if spec is None:
        raise EngineError(f"weight {weight.name!r} is not part of what engines get")
    if spec.shape != tuple(weight.shape):
        raise EngineError(f"weight {weight.name!r} has shape {tuple(weight.shape)}, engines expect {spec.shape}")
    part = owned_part(weight, ranks.rank, ranks.num_ranks, owner)
    held = (weight.first_row, num_rows(weight.rows.shape))
    if part[1] and part != held:
        raise EngineError(
            f"rank {ranks.rank} of {ranks.num_ranks} holds {held[1]} rows of weight {weight.name!r} from row {held[0]} "
            f"on; its part is {part[1]} from row {part[0]} on"
        )


def _served(
    weight: LocalWeight, scales: torch.Tensor | None, quantization: str | None, writes_scales: bool
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Name, first row and rows of what a weight becomes."""
    if scales is None or quantization is None:
        yield weight.name, weight.first_row, weight.rows
        return
    yield weight.name, weight.first_row, cast_rows(weight.rows, weight.first_row, scales)
    if writes_scales:
        yield scale_name(weight.name, quantization), 0, scales


def _shared_scales(
    quantization: str, weights: Callable[[], Iterable[LocalWeight]], ranks: Ranks
) -> dict[str, torch.Tensor]:
    """Scales of each linear layer, the same on every rank."""
    names, largest = [], []
    for weight in weights():
        if not is_linear(weight.name, weight.shape):
            continue
        names.append(weight.name)
        rows = weight.rows.float()
        if quantization == "fp8_block":
            largest.append(block_absmax(rows, weight.first_row, weight.shape[0]))
        else:
            largest.append(rows.abs().amax() if rows.numel() else rows.new_zeros(()))
    if not names:
        return {}
    flat = torch.cat([found.reshape(-1) for found in largest])
    # A maximum over ranks may pass over what is no number, but not over infinity, which is refused all the same.
    flat = ranks.max(torch.where(torch.isfinite(flat), flat, math.inf))
    parts = flat.split([found.numel() for found in largest])
    return {
        name: scales_of(name, part.view(found.shape)) for name, part, found in zip(names, parts, largest, strict=True)
    }
