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
    "RowCopier",
    "Sink",
    "ViewSink",
    "WriteOrder",
    "WrittenRows",
    "num_rows",
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


def part_of(weight: LocalWeight, ranks: Ranks) -> tuple[int, int]:
    """First row and number of rows of ``weight`` that this rank has to write: of a weight that all ranks hold whole,
    only the first does.

    Raises:
        EngineError: it does not hold them.
    """
    total, held = num_rows(weight.shape), (weight.first_row, num_rows(weight.rows.shape))
    size = -(-total // ranks.num_ranks)
    if held == (0, total) and size < total and ranks.num_ranks > 1:
        return (0, total if ranks.rank == 0 else 0)
    first = min(ranks.rank * size, total)
    part = (first, min(size, total - first))
    if part[1] and part != held:
        raise EngineError(
            f"rank {ranks.rank} of {ranks.num_ranks} holds {held[1]} rows of weight {weight.name!r} from row {held[0]} "
            f"on; its part is {part[1]} from row {part[0]} on"
        )
    return part


class RowCopier:
    """Copies this rank's rows of all weights, some at a time. Every rank makes one of the same order, and has it copy
    as often and as much: weights may come out of computations that all ranks take part in.

    An error is kept and the weights are still gone through, so that no other rank waits for this one in vain.

    Args:
        weights: the live weights, the same names in the same order on each rank; one is held at a time. Asked for
            twice where weights are quantized.
    """

    def __init__(self, order: WriteOrder, weights: Callable[[], Iterable[LocalWeight]], ranks: Ranks) -> None:
        self._order = order
        self._specs = {spec.name: spec for spec in order.specs}
        self._ranks = ranks
        self.error: EngineError | None = None
        self._scales: dict[str, torch.Tensor] = {}
        if order.quantization is not None:
            largest = _shared_maxima(order.quantization, weights, ranks)
            try:
                self._scales = {name: scales_of(name, found) for name, found in largest.items()}
            except EngineError as error:
                self.error = error
        self._weights = iter(weights())

    def copy(self, sink: Sink, max_bytes: float = math.inf) -> tuple[list[WrittenRows], bool]:
        """Write rows of the next weights; what was written, and whether there are more weights.

        Args:
            sink: where they go.
            max_bytes: of whole weights that one call goes through, but for one that alone has more.
        """
        written: list[tuple[str, int, int]] = []
        samples: list[torch.Tensor] = []
        num_bytes = 0
        has_more = False
        for weight in self._weights:
            num_bytes += math.prod(weight.shape) * weight.dtype.itemsize
            try:
                if self.error is None:
                    self._copy_one(weight, sink, written, samples)
            except EngineError as error:
                self.error = error
            has_more = num_bytes >= max_bytes
            if has_more:
                break
        sums = sample_sums(samples)
        return [WrittenRows(*rows, found) for rows, found in zip(written, sums, strict=True)], has_more

    def _copy_one(
        self, weight: LocalWeight, sink: Sink, written: list[tuple[str, int, int]], samples: list[torch.Tensor]
    ) -> None:
        spec = self._specs.get(weight.name)
        if spec is None:
            raise EngineError(f"weight {weight.name!r} is not part of what engines get")
        if spec.shape != tuple(weight.shape):
            raise EngineError(f"weight {weight.name!r} has shape {tuple(weight.shape)}, engines expect {spec.shape}")
        if not part_of(weight, self._ranks)[1] or not weight.rows.numel():
            return
        for name, first_row, rows in self._served(weight):
            sink.put(self._specs[name], first_row, rows)
            written.append((name, first_row, num_rows(rows.shape)))
            samples.append(sample(name, self._order.version, rows, self._specs[name].dtype))

    def _served(self, weight: LocalWeight) -> Iterator[tuple[str, int, torch.Tensor]]:
        """Name, first row and rows of what a weight becomes."""
        scales = self._scales.get(weight.name)
        if scales is None or self._order.quantization is None:
            yield weight.name, weight.first_row, weight.rows
            return
        yield weight.name, weight.first_row, cast_rows(weight.rows, weight.first_row, scales)
        if self._ranks.rank == 0:
            yield scale_name(weight.name, self._order.quantization), 0, scales


def _shared_maxima(
    quantization: str, weights: Callable[[], Iterable[LocalWeight]], ranks: Ranks
) -> dict[str, torch.Tensor]:
    """What the scales of each linear layer are made of, the same on every rank."""
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
    return {name: part.view(found.shape) for name, part, found in zip(names, parts, largest, strict=True)}
