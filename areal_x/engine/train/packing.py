"""Packing: which tokens of a batch are computed, in which micro-batch, in which row.

Axis letters: N tokens of the batch, S sequences, P packed rows of one micro-batch, M tokens to predict.

    batch [N] -> what must be computed (computed_tokens.py) -> micro-batches by token budget
              -> packed rows [P], no padding -> buckets of similar length for attention (attention.py)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.records import TrainBatch
from areal_x.engine.train.attention_plan import SDPA, AttentionPlan, Segments, attention_cost, plan_attention
from areal_x.engine.train.computed_tokens import ComputedTokens, Indices, computed_tokens, ragged_arange

__all__ = ["MicroBatch", "count_micro_batches", "plan_micro_batches"]

MAX_TREE_ROWS = 2048
"""Larger groups do not attend as one tree: its mask has this many squared entries."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass, as tensors on the model's device."""

    input_ids: torch.Tensor
    """int64 [1, P]."""
    position_ids: torch.Tensor
    """int64 [1, P], counted from 0 in each sequence."""
    attention: AttentionPlan
    rows: torch.Tensor
    """int64 [M]: the packed row whose hidden state predicts each target; a shared row comes up several times."""
    targets: torch.Tensor
    """int64 [M]: the ids to predict."""
    positions: torch.Tensor
    """int64 [M]: where in the batch (0..N) each target lies."""

    @property
    def num_rows(self) -> int:
        """Tokens that the model computes."""
        return self.input_ids.shape[1]


def plan_micro_batches(
    batch: TrainBatch,
    target_mask: npt.NDArray[np.bool_],
    micro_batch_tokens: int,
    *,
    sequences: Indices | None = None,
    share_prefixes: bool = True,
    num_micro_batches: int | None = None,
    device: torch.device | str = "cpu",
    kernel: str = SDPA,
) -> list[MicroBatch]:
    """Cut a batch into micro-batches of at most ``micro_batch_tokens`` rows.

    A sequence longer than the budget gets a micro-batch of its own; a group that is too large is divided. Micro-batches
    are balanced, and sequences of similar length lie together.

    Args:
        target_mask: bool [N], the tokens whose log-probability is wanted; never the first of a sequence.
        sequences: use only these.
        share_prefixes: compute the common prefix of a group's sequences once.
        num_micro_batches: make so many, so that all ranks make equally many passes; where there are not enough
            sequences, the last ones have one row and no target.
        kernel: of attention, from ``choose_kernel``.

    Returns:
        The micro-batches; none if nothing is wanted and no number is.

    Raises:
        ValueError: ``num_micro_batches`` is less than the budget needs.
    """
    needed = computed_tokens(batch, target_mask, sequences=sequences, share_prefixes=share_prefixes)
    if num_micro_batches is None and not len(needed.sequences):
        return []
    offsets_S = batch.offsets[:-1]
    targets = np.flatnonzero(target_mask).astype(np.int64)
    sequence_of_target = np.repeat(np.arange(len(batch.lengths)), batch.lengths)[targets]
    number_S = np.full(len(batch.lengths), -1, dtype=np.int64)
    numbers, units = _assign(needed, micro_batch_tokens, num_micro_batches)
    number_S[needed.sequences] = numbers
    number_of_target = number_S[sequence_of_target]
    input_ids = np.asarray(batch.input_ids, dtype=np.int64)
    micro_batches = []
    for number in range(int(numbers.max(initial=-1)) + 1):
        chosen = np.flatnonzero(numbers == number)
        chosen = chosen[np.argsort(needed.used[chosen], kind="stable")]
        index = needed.sequences[chosen]
        members = _Members(index, offsets_S[index], needed.used[chosen], needed.shared[chosen], units[chosen])
        wanted = number_of_target == number
        micro_batches.append(_lay_out(input_ids, members, targets[wanted], sequence_of_target[wanted], device, kernel))
    padding = (num_micro_batches or 0) - len(micro_batches)
    return micro_batches + [_empty_micro_batch(device, kernel) for _ in range(padding)]


def count_micro_batches(
    batch: TrainBatch,
    target_mask: npt.NDArray[np.bool_],
    micro_batch_tokens: int,
    *,
    sequences: Indices | None = None,
) -> int:
    """How many micro-batches ``plan_micro_batches`` makes of the same arguments, without making them."""
    needed = computed_tokens(batch, target_mask, sequences=sequences)
    return len(_Walk(needed).cuts(micro_batch_tokens)) if len(needed.sequences) else 0


@dataclass(frozen=True, slots=True)
class _Members:
    """The sequences of one micro-batch, shortest first; every field is int64 [S]."""

    index: Indices
    """Place in the batch."""
    offset: Indices
    """Start in the batch's tokens."""
    used: Indices
    """Tokens that must be computed, from the start."""
    shared: Indices
    """Tokens of them that lie in the unit's shared prefix."""
    unit: Indices
    """Sequences of one unit share their prefix."""


class _Walk:
    """Sequences in the order of their unit's longest member, cut where a budget is full.

    A unit may be cut too; each part then has a prefix of its own.
    """

    def __init__(self, needed: ComputedTokens) -> None:
        longest = np.zeros(needed.units.max() + 1, dtype=np.int64)
        np.maximum.at(longest, needed.units, needed.used)
        self.order = np.lexsort((needed.used, needed.units, longest[needed.units]))
        units, shared = needed.units[self.order], needed.shared[self.order]
        starts_unit = np.concatenate([[True], units[1:] != units[:-1]])
        self.repeated = shared * ~starts_unit
        """Tokens of the prefix that a cut before the sequence computes again."""
        self.ends = np.cumsum(needed.used[self.order] - self.repeated)

    def cuts(self, budget: int) -> list[int]:
        """Ends (exclusive) of micro-batches of at most ``budget`` tokens, or of one sequence where it is longer."""
        cuts: list[int] = []
        start, before = 0, 0
        while start < len(self.ends):
            limit = before + budget - int(self.repeated[start])
            start = max(start + 1, int(np.searchsorted(self.ends, limit, side="right")))
            before = int(self.ends[start - 1])
            cuts.append(start)
        return cuts

    def balanced_cuts(self, budget: int, number: int | None) -> list[int]:
        """As few cuts as ``budget`` allows (with ``number``: up to so many), at the lowest budget that keeps to it.

        Raises:
            ValueError: ``number`` is too small for the budget.
        """
        cuts = self.cuts(budget)
        if number is not None and number < len(cuts):
            raise ValueError(f"num_micro_batches={number}, but {budget} tokens a micro-batch need {len(cuts)}")
        most = len(cuts) if number is None else number
        low, high = -(-int(self.ends[-1]) // most), budget
        while low < high:
            middle = (low + high) // 2
            trial = self.cuts(middle)
            if len(trial) <= most:
                cuts, high = trial, middle
            else:
                low = middle + 1
        return cuts


def _assign(needed: ComputedTokens, budget: int, number: int | None) -> tuple[Indices, Indices]:
    """Micro-batch number and final unit number of each computed sequence, int64 [K] both."""
    if not len(needed.sequences):
        return needed.units, needed.units
    walk = _Walk(needed)
    cuts = walk.balanced_cuts(budget, number)
    numbers = np.empty_like(walk.order)
    numbers[walk.order] = np.searchsorted(np.asarray(cuts), np.arange(len(walk.order)), side="right")
    _, final_units = np.unique(needed.units * (len(cuts) + 1) + numbers, return_inverse=True)
    return numbers, final_units.astype(np.int64)


def _empty_micro_batch(device: torch.device | str, kernel: str) -> MicroBatch:
    """One row and no target: what a rank computes when it has nothing left and others still need its weights."""
    row = np.zeros(1, dtype=np.int64)
    one, none = torch.zeros((1, 1), dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    return MicroBatch(one, one, plan_attention([Segments(row, row + 1, row)], 1, device, kernel), none, none, none)


def _lay_out(
    input_ids: Indices,
    members: _Members,
    targets: Indices,
    sequence_of_target: Indices,
    device: torch.device | str,
    kernel: str,
) -> MicroBatch:
    """Give every token of a micro-batch its packed row: all shared prefixes first, then each sequence's own tokens."""
    _, first, unit_of_member = np.unique(members.unit, return_index=True, return_inverse=True)
    prefix_lengths = members.shared[first]
    prefix_starts = np.cumsum(prefix_lengths) - prefix_lengths
    own = members.used - members.shared
    own_starts = prefix_lengths.sum() + np.cumsum(own) - own
    local = ragged_arange(members.used)
    is_shared = local < np.repeat(members.shared, members.used)
    base = np.where(
        is_shared,
        np.repeat(prefix_starts[unit_of_member], members.used),
        np.repeat(own_starts - members.shared, members.used),
    )
    rows = base + local
    num_rows = int(prefix_lengths.sum() + own.sum())
    packed_ids = np.empty(num_rows, dtype=np.int64)
    position_ids = np.empty(num_rows, dtype=np.int64)
    packed_ids[rows] = input_ids[np.repeat(members.offset, members.used) + local]
    position_ids[rows] = local
    place = np.empty(int(members.index.max()) + 1, dtype=np.int64)
    place[members.index] = np.arange(len(members.index))
    member_of_target = place[sequence_of_target]
    start_of_member = np.cumsum(members.used) - members.used
    predicting = start_of_member[member_of_target] + targets - members.offset[member_of_target] - 1
    segments = _segments(members, first, unit_of_member, rows, local, trees=kernel == SDPA)
    return MicroBatch(
        input_ids=torch.from_numpy(packed_ids)[None].to(device),
        position_ids=torch.from_numpy(position_ids)[None].to(device),
        attention=plan_attention(segments, num_rows, device, kernel),
        rows=torch.from_numpy(rows[predicting]).to(device),
        targets=torch.from_numpy(input_ids[targets]).to(device),
        positions=torch.from_numpy(targets).to(device),
    )


def _segments(
    members: _Members, first: Indices, unit_of_member: Indices, rows: Indices, local: Indices, trees: bool
) -> list[Segments]:
    """What attends together: a causal segment for each sequence, or (with ``trees``) one tree for a unit if cheaper.

    ``first`` is each unit's first member; ``rows`` and ``local`` are row and position of each token of each member.
    """
    own = members.used - members.shared
    tree_lengths = members.shared[first] + np.bincount(unit_of_member, weights=own).astype(np.int64)
    apart = np.bincount(unit_of_member, weights=attention_cost(members.used))
    is_tree = (
        trees & (members.shared[first] > 0) & (attention_cost(tree_lengths) < apart) & (tree_lengths <= MAX_TREE_ROWS)
    )
    member_of_token = np.repeat(np.arange(len(own)), members.used)
    unit_of_token = unit_of_member[member_of_token]
    in_tree = is_tree[unit_of_token]
    parts = []
    if not is_tree.all():
        alone = ~in_tree
        parts.append(Segments(rows[alone], members.used[~is_tree[unit_of_member]], local[alone]))
    if is_tree.any():
        on_trunk = local < members.shared[member_of_token]
        kept = np.flatnonzero(in_tree & (~on_trunk | (first[unit_of_token] == member_of_token)))
        order = np.lexsort((unit_of_token[kept], tree_lengths[unit_of_token[kept]]))
        kept = kept[order]
        branches = np.where(on_trunk, -1, member_of_token)[kept]
        parts.append(Segments(rows[kept], np.sort(tree_lengths[is_tree]), local[kept], branches))
    return parts
