"""Copying a version out of the trainer, whole or not at all, and checked. ::

    begin(version) ─▶ OpenWrite ─▶ WeightSource.copy_into ─▶ commit: count, shapes, samples ─▶ it is the newest
                                                          └─▶ abandon: the version before stays valid

A source is the trainer in this process (``LiveWeights``) or ranks of which each holds some rows (``RankWeights``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.ranks.rank_context import ONE_RANK
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.samples import sample_sums
from areal_x.engine.transfer.shared_buffers import TensorSpec
from areal_x.engine.transfer.weight_rows import (
    LocalWeight,
    RowCopier,
    Sink,
    ViewSink,
    WriteOrder,
    WrittenRows,
    num_rows,
)
from areal_x.engine.transfer.write_rows import WriteReceipt
from areal_x.engine.transfer.write_target import WriteTarget, open_target

__all__ = ["LiveWeights", "OpenWrite", "RankWeights", "Staging", "WeightSource", "WrongWeightsError", "check_written"]

_ATTEMPTS = 2
_BUCKET_BYTES = 64 * 2**20


class WrongWeightsError(EngineError):
    """What was written is not what was to be written."""


@dataclass(frozen=True)
class OpenWrite:
    """A version that is being written.

    Args:
        views: its tensors in this process's memory, where they lie there.
        target: the same place for other processes; ``None``: no other can write there.
    """

    order: WriteOrder
    views: Mapping[str, torch.Tensor] | None
    target: WriteTarget | None

    def open(self, stack: ExitStack) -> Sink:
        """Where this process writes it."""
        if self.views is not None:
            return ViewSink(self.views)
        assert self.target is not None
        return stack.enter_context(open_target(self.target))


class WeightSource(ABC):
    """Weights on their way out."""

    is_here = True
    """Whether this process holds them."""

    @abstractmethod
    def copy_into(self, write: OpenWrite) -> list[WrittenRows]:
        """Copy all weights to their places; they may change again once this returns.

        Raises:
            EngineError: they are not those that the write is for, or could not be written.
        """


class LiveWeights(WeightSource):
    """Weights of a trainer in this process.

    Args:
        named_weights: gives the live weights, whole, in an order of its own; one is held at a time.
    """

    def __init__(self, named_weights: Callable[[], Iterable[tuple[str, torch.Tensor]]]) -> None:
        self.named_weights = named_weights

    def copy_into(self, write: OpenWrite) -> list[WrittenRows]:
        """See ``WeightSource.copy_into``."""
        copier = RowCopier(write.order, self._local_weights, ONE_RANK)
        with ExitStack() as stack:
            written, _ = copier.copy(write.open(stack))
        if copier.error is not None:
            raise copier.error
        return written

    def _local_weights(self) -> Iterator[LocalWeight]:
        for name, weight in self.named_weights():
            tensor = weight.detach()
            yield LocalWeight(name, tuple(tensor.shape), tensor.dtype, 0, tensor)


class RankWeights(WeightSource):
    """Weights of which each rank holds some rows; each writes its own.

    Args:
        group: the ranks.
        role: has ``write_rows(target, max_bytes) -> WriteReceipt``: with a target, it makes a ``RowWriter`` and has it
            write; with ``None``, it has the same one go on.
    """

    is_here = False

    def __init__(self, group: RankGroup, role: str = "policy") -> None:
        self._group = group
        self._role = role

    def copy_into(self, write: OpenWrite) -> list[WrittenRows]:
        """See ``WeightSource.copy_into``. Blocks until all ranks have written."""
        if write.target is None:
            raise EngineError("ranks cannot write where these weights are staged, which is this process's own memory")
        max_bytes = math.inf if self._group.same_host else _BUCKET_BYTES
        written: list[WrittenRows] = []
        errors: list[str] = []
        target: WriteTarget | None = write.target
        has_more = True
        while has_more:
            receipts: list[WriteReceipt] = self._group.call(self._role, "write_rows", target, max_bytes)
            target = None
            for receipt in receipts:
                _write_sent(receipt, write)
                written += receipt.written
                errors += [] if receipt.error is None else [receipt.error]
            has_more = any(receipt.has_more for receipt in receipts)
        if errors:
            raise EngineError(f"new weights could not be written: {errors[0]}")
        return written


def _write_sent(receipt: WriteReceipt, write: OpenWrite) -> None:
    if not receipt.sent:
        return
    specs = {spec.name: spec for spec in write.order.specs}
    with ExitStack() as stack:
        sink = write.open(stack)
        for rows in receipt.sent:
            spec = specs[rows.name]
            # What came by shared memory may be read-only, which torch warns of.
            values = torch.frombuffer(bytearray(rows.data), dtype=torch.uint8).view(spec.dtype)
            sink.put(spec, rows.first_row, values.view(-1, *spec.shape[1:]))


class Staging(ABC):
    """Where versions are copied to before engines are told of them.

    Args:
        layout: the tensors as engines get them.
    """

    def __init__(self, layout: TensorLayout) -> None:
        self.layout = layout

    @property
    def num_bytes(self) -> int:
        """Size of one copy of the weights as engines get them."""
        return self.layout.num_bytes

    @property
    @abstractmethod
    def version(self) -> int | None:
        """The newest complete version, ``None`` before the first."""

    @abstractmethod
    def begin(self, version: int) -> OpenWrite:
        """Make room for ``version``. ``commit`` or ``abandon`` follows, before another begins."""

    @abstractmethod
    def finish(self, write: OpenWrite, sums: Mapping[str, int]) -> None:
        """Make a version that is written and checked the newest.

        Args:
            sums: the checksum of each tensor's samples, for those who read it.
        """

    @abstractmethod
    def abandon(self, write: OpenWrite) -> None:
        """Give up a version; the one before stays valid."""

    def stage(self, version: int, source: WeightSource) -> None:
        """Copy ``version`` out of ``source`` and check it; what is wrong is written once more, in whole.

        Raises:
            EngineError: it could not be written, or was wrong again; the version before stays valid.
        """
        for attempt in range(_ATTEMPTS):
            write = self.begin(version)
            try:
                self.commit(write, source.copy_into(write))
                return
            except WrongWeightsError:
                self.abandon(write)
                if attempt + 1 == _ATTEMPTS:
                    raise
            except BaseException:
                self.abandon(write)
                raise

    def commit(self, write: OpenWrite, written: Sequence[WrittenRows]) -> None:
        """Check what was written, and make it the newest version.

        Raises:
            WrongWeightsError: rows are missing, or samples differ; the message names the tensor.
        """
        with ExitStack() as stack:
            sums = check_written(write.order, written, write.open(stack))
        self.finish(write, sums)

    def write(self, version: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Stage these tensors. All names and shapes are checked before the first byte is written.

        Raises:
            EngineError: a tensor is missing, unknown or of another shape; the version before stays valid.
        """
        tensors = self.layout.checked(named_tensors)
        self.stage(version, LiveWeights(tensors.items))


def check_written(order: WriteOrder, written: Sequence[WrittenRows], sink: Sink) -> dict[str, int]:
    """The checksum of each whole tensor's samples.

    Raises:
        WrongWeightsError: a row was written by no rank or by two, or samples are not what a rank says it wrote.
    """
    specs = {spec.name: spec for spec in order.specs}
    parts: dict[str, list[WrittenRows]] = {name: [] for name in specs}
    for part in written:
        parts[part.name].append(part)
    for spec in order.specs:
        _check_rows(spec, parts[spec.name])
    samples = [sink.sampled(specs[part.name], order.version, part.first_row, part.num_rows) for part in written]
    for part, found in zip(written, sample_sums(samples), strict=True):
        if found != part.sum:
            raise WrongWeightsError(
                f"weight {part.name!r} of version {order.version}: rows {part.first_row} to "
                f"{part.first_row + part.num_rows} are not what the trainer holds (checksum of samples)"
            )
    whole = {part.name: part.sum for part in written if part.num_rows == num_rows(specs[part.name].shape)}
    rest = [spec for spec in order.specs if spec.name not in whole]
    sums = sample_sums([sink.sampled(spec, order.version, 0, num_rows(spec.shape)) for spec in rest])
    return whole | {spec.name: found for spec, found in zip(rest, sums, strict=True)}


def _check_rows(spec: TensorSpec, parts: Sequence[WrittenRows]) -> None:
    if not spec.num_bytes:
        return
    end = 0
    for part in sorted(parts, key=lambda part: part.first_row):
        if part.first_row != end:
            first, last = sorted((end, part.first_row))
            what = "by no rank" if part.first_row > end else "twice"
            raise WrongWeightsError(f"weight {spec.name!r}: rows {first} to {last} were written {what}")
        end += part.num_rows
    if end != num_rows(spec.shape):
        raise WrongWeightsError(f"weight {spec.name!r}: {end} of {num_rows(spec.shape)} rows were written")
