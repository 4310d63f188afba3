"""Dealing a batch out to the ranks that train: a pure function, so that each rank finds the same parts by itself.

The load of a part is the number of tokens that its rank computes: trimmed sequences, with a shared prefix counted once
for the members of a group that lie together. All ranks then make equally many passes, as a pass gathers weights from
all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.records import TrainBatch
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.attention_plan import SDPA
from areal_x.engine.train.computed_tokens import ComputedTokens, Indices, computed_tokens
from areal_x.engine.train.packing import MicroBatch, count_micro_batches, plan_micro_batches
from areal_x.engine.train.sequence_parallel import share_rows

__all__ = ["deal_sequences", "plan_part", "plan_rank"]

TOLERANCE = 0.02
"""Groups are divided only when the fullest part holds this much more than the mean."""


def deal_sequences(
    batch: TrainBatch,
    wanted_mask: npt.NDArray[np.bool_],
    num_parts: int,
    *,
    sequences: Indices | None = None,
) -> list[Indices]:
    """Deal the sequences with a wanted token out to ``num_parts`` parts, balanced by computed tokens.

    Whole groups are dealt first, the largest to the emptiest part. Then single sequences move from the fullest part to
    the emptiest until the fullest is within ``TOLERANCE`` of the mean, or no move helps any more: their loads then
    differ by no more than the longest sequence.

    Args:
        wanted_mask: bool [N], the tokens whose log-probability is wanted.
        sequences: deal out only these.

    Returns:
        Ascending places in the batch, one int64 array for each part. Every wanted sequence is in exactly one.
    """
    needed = computed_tokens(batch, wanted_mask, sequences=sequences)
    if num_parts == 1 or not len(needed.sequences):
        return [needed.sequences] + [np.zeros(0, dtype=np.int64)] * (num_parts - 1)
    part_K = _deal_groups(needed, num_parts)
    _level(needed, part_K, num_parts)
    return [needed.sequences[part_K == part] for part in range(num_parts)]


def plan_part(
    batch: TrainBatch,
    wanted_mask: npt.NDArray[np.bool_],
    micro_batch_tokens: int,
    *,
    part: int,
    num_parts: int,
    sequences: Indices | None = None,
    device: torch.device | str = "cpu",
    kernel: str = SDPA,
) -> list[MicroBatch]:
    """The micro-batches of one of ``num_parts`` parts; each part has equally many, as ``plan_micro_batches`` pads."""
    if num_parts == 1:
        return plan_micro_batches(
            batch, wanted_mask, micro_batch_tokens, sequences=sequences, device=device, kernel=kernel
        )
    parts = deal_sequences(batch, wanted_mask, num_parts, sequences=sequences)
    number = max(count_micro_batches(batch, wanted_mask, micro_batch_tokens, sequences=mine) for mine in parts)
    return plan_micro_batches(
        batch,
        wanted_mask,
        micro_batch_tokens,
        sequences=parts[part],
        num_micro_batches=number,
        device=device,
        kernel=kernel,
    )


def plan_rank(
    batch: TrainBatch,
    wanted_mask: npt.NDArray[np.bool_],
    micro_batch_tokens: int,
    ranks: RankContext,
    *,
    sequences: Indices | None = None,
    device: torch.device | str = "cpu",
    kernel: str = SDPA,
) -> list[MicroBatch]:
    """A rank's micro-batches, or its rows of those that it shares; as many as every other rank's."""
    plan = plan_part(
        batch,
        wanted_mask,
        micro_batch_tokens,
        part=ranks.data_rank,
        num_parts=ranks.num_data_ranks,
        sequences=sequences,
        device=device,
        kernel=kernel,
    )
    return [share_rows(micro_batch, ranks) for micro_batch in plan]


def _deal_groups(needed: ComputedTokens, num_parts: int) -> Indices:
    """Part of each sequence, int64 [K]: whole groups, largest first, each to the part that is emptiest by then."""
    costs = np.bincount(needed.units, weights=needed.used - needed.shared).astype(np.int64)
    costs += needed.shared[np.unique(needed.units, return_index=True)[1]]
    loads = np.zeros(num_parts, dtype=np.int64)
    part_of_unit = np.empty(len(costs), dtype=np.int64)
    for unit in np.argsort(-costs, kind="stable"):
        part_of_unit[unit] = loads.argmin()
        loads[part_of_unit[unit]] += costs[unit]
    return part_of_unit[needed.units]


def _level(needed: ComputedTokens, part_K: Indices, num_parts: int) -> None:
    """Move sequences from the fullest part to the emptiest, in place, while that lowers the higher of the two."""
    own_K = needed.used - needed.shared
    members = np.zeros((num_parts, int(needed.units.max()) + 1), dtype=np.int64)
    np.add.at(members, (part_K, needed.units), 1)
    prefix_U = needed.shared[np.unique(needed.units, return_index=True)[1]]
    loads = np.bincount(part_K, weights=own_K, minlength=num_parts).astype(np.int64) + (members > 0) @ prefix_U
    while True:
        full, empty = int(loads.argmax()), int(loads.argmin())
        if loads[full] <= (1 + TOLERANCE) * loads.mean():
            return
        candidates = np.flatnonzero(part_K == full)
        units = needed.units[candidates]
        left = loads[full] - own_K[candidates] - needed.shared[candidates] * (members[full, units] == 1)
        right = loads[empty] + own_K[candidates] + needed.shared[candidates] * (members[empty, units] == 0)
        higher = np.maximum(left, right)
        best = int(higher.argmin())
        if higher[best] >= loads[full]:
            return
        part_K[candidates[best]] = empty
        members[full, units[best]] -= 1
        members[empty, units[best]] += 1
        loads[full], loads[empty] = left[best], right[best]
