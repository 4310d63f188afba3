"""A rank's part of staging a version: its own rows, straight to where engines read them. ::

    driver: Staging.begin ─▶ WriteTarget ─▶ every rank: RowWriter ─▶ WriteReceipt ─▶ driver: Staging.commit (checks)

Ranks on the target's machine write there themselves. Rows of ranks on other machines come with their receipts, a bucket
at a time, and the driver writes them. No rank ever has rows of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.shared_buffers import TensorSpec
from areal_x.engine.transfer.weight_rows import LocalWeight, Ranks, RowCopier, Sink, WrittenRows
from areal_x.engine.transfer.write_target import WriteTarget, machine, open_target

__all__ = ["RowWriter", "SentRows", "WriteReceipt"]


@dataclass(frozen=True)
class SentRows:
    """Rows of a served tensor, of its type, in bytes."""

    name: str
    first_row: int
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class WriteReceipt:
    """What a rank wrote, or why it could not; the update fails then, and the ranks go on.

    ``sent``: rows among ``written`` that the driver still has to write. ``has_more``: call again.
    """

    written: tuple[WrittenRows, ...] = ()
    sent: tuple[SentRows, ...] = ()
    has_more: bool = False
    error: str | None = None


class RowWriter:
    """One version on one rank. See ``RowCopier`` for the arguments."""

    def __init__(self, target: WriteTarget, weights: Callable[[], Iterable[LocalWeight]], ranks: Ranks) -> None:
        self._target = target
        self._ranks = ranks
        self._copier = RowCopier(target.order, weights, ranks)

    def write(self, max_bytes: float = math.inf) -> WriteReceipt:
        """Write rows of the next weights, or all of them. Every rank is called alike."""
        outbox = _Outbox()
        written: list[WrittenRows] = []
        has_more = has_begun = False
        # Files are there for ranks of other machines, too, or the update fails with their path.
        can_write = self._target.machine in (None, machine())
        try:
            with open_target(self._target) if can_write else nullcontext(outbox) as sink:
                has_begun = True
                written, has_more = self._copier.copy(sink, max_bytes)
        except EngineError as error:
            self._copier.error = error
            if not has_begun:
                _, has_more = self._copier.copy(outbox, max_bytes)
        failure = self._copier.error
        if failure is not None:
            return WriteReceipt(has_more=has_more, error=f"rank {self._ranks.rank}: {failure}")
        return WriteReceipt(tuple(written), tuple(outbox.sent), has_more)


class _Outbox(Sink):
    """Keeps rows for the driver."""

    def __init__(self) -> None:
        self.sent: list[SentRows] = []

    def put(self, spec: TensorSpec, first_row: int, rows: torch.Tensor) -> None:
        # A copy: it may wait to be sent while the weights change.
        data = rows.reshape(-1).to(spec.dtype).cpu().contiguous().view(torch.uint8).numpy().copy()
        self.sent.append(SentRows(spec.name, first_row, data))

    def read(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        raise NotImplementedError("rows that were sent are read where they were written")
