"""A rank's part of staging a version: its own rows, straight to where engines read them. ::

    driver: Staging.begin ─▶ WriteTarget ─▶ every rank: write_rows ─▶ WriteReceipt ─▶ driver: Staging.commit (checks)

Ranks on the target's machine write there themselves. Rows of ranks on other machines travel in pieces to the lowest
rank that can write, through the ranks' own process group; no rank holds more of them than one piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.distributed as dist

from areal_x.api.errors import EngineError
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.transfer.shared_buffers import TensorSpec
from areal_x.engine.transfer.weight_rows import LocalWeight, Sink, WrittenRows, copy_rows, num_rows, owned_part
from areal_x.engine.transfer.write_target import WriteTarget, machine, open_target

__all__ = ["WriteReceipt", "write_rows"]

_PIECE_BYTES = 64 * 2**20

Weights = Callable[[], Iterable[LocalWeight]]


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """What a rank wrote, or why it could not; the update fails then, and the ranks go on."""

    written: tuple[WrittenRows, ...] = ()
    error: str | None = None


def write_rows(
    target: WriteTarget,
    weights: Weights,
    ranks: RankContext,
    one_machine: bool = True,
) -> WriteReceipt:
    """Write this rank's rows to ``target``. Every rank calls it.

    Args:
        weights: see ``copy_rows``.
        one_machine: all ranks run where the target is. Else they first agree on who can write.

    Raises:
        EngineError: a rank failed among ranks of several machines, where others wait for it in vain.
    """
    if not one_machine and ranks.num_ranks > 1:
        with ExitStack() as stack:
            return WriteReceipt(tuple(_write_from_many_machines(target, weights, ranks, stack)))
    try:
        with open_target(target) as sink:
            return WriteReceipt(tuple(copy_rows(sink, target.order, weights, ranks)))
    except (OSError, EngineError) as error:
        return WriteReceipt(error=f"rank {ranks.rank}: {error}")


def _write_from_many_machines(
    target: WriteTarget, weights: Weights, ranks: RankContext, stack: ExitStack
) -> list[WrittenRows]:
    sink, failure = None, None
    # Files are there for ranks of other machines, too, or the update fails with their path.
    if target.machine in (None, machine()):
        try:
            sink = stack.enter_context(open_target(target))
        except (OSError, EngineError) as error:
            failure = error
    states = torch.zeros(2, ranks.num_ranks)
    states[:, ranks.rank] = torch.tensor([sink is not None, failure is not None])
    dist.all_reduce(states)
    can_write, failed = states.tolist()
    if any(failed):
        raise failure or EngineError(f"rank {failed.index(1.0)} could not open the place of new weights")
    if not any(can_write):
        raise EngineError("no rank runs on the machine where new weights are staged; use rollout.server.weights=disk")
    root = can_write.index(1.0)
    if sink is None:
        return copy_rows(_Sender(root), target.order, weights, ranks, root)
    if ranks.rank != root:
        return copy_rows(sink, target.order, weights, ranks, root)
    senders = [rank for rank, can in enumerate(can_write) if not can]
    specs = {spec.name: spec for spec in target.order.specs}

    def receive(weight: LocalWeight) -> None:
        """What senders hold of it; they send in the same order."""
        for sender in senders:
            _receive(specs[weight.name], owned_part(weight, sender, ranks.num_ranks, root), sender, sink)

    return copy_rows(sink, target.order, weights, ranks, root, receive)


class _Sender(Sink):
    """Sends rows to the rank that writes them."""

    def __init__(self, root: int) -> None:
        self._root = root

    def put(self, spec: TensorSpec, first_row: int, rows: torch.Tensor) -> None:
        for piece in rows.reshape(num_rows(rows.shape), -1).split(_rows_of_piece(spec)):
            dist.send(piece.to(spec.dtype).cpu().contiguous().view(torch.uint8), self._root)

    def read(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        raise NotImplementedError("rows that were sent are read where they were written")


def _receive(spec: TensorSpec, part: tuple[int, int], sender: int, sink: Sink) -> None:
    (first_row, count), size = part, _rows_of_piece(spec)
    width = math.prod(spec.shape[1:]) * spec.dtype.itemsize
    for start in range(first_row, first_row + count, size):
        piece = torch.empty(min(size, first_row + count - start), width, dtype=torch.uint8)
        dist.recv(piece, sender)
        sink.put(spec, start, piece.view(spec.dtype))


def _rows_of_piece(spec: TensorSpec) -> int:
    return max(1, _PIECE_BYTES // max(1, math.prod(spec.shape[1:]) * spec.dtype.itemsize))
