"""Packing: which tokens of a batch are computed, in which micro-batch, in which row.

Axis letters: N tokens of the batch, S sequences, P packed rows of one micro-batch, M tokens to predict.

    batch [N] -> drop what predicts nothing -> share prefixes within a group -> micro-batches by token budget
              -> packed rows [P], no padding -> buckets of similar length for attention (attention.py)

A token whose successors are not trained needs no forward pass: each sequence is cut before its last trained token, and
a sequence without one is left out. Samples of one group begin with the same prompt: its rows are computed once, all
samples attend to them, and their gradients add up there. Both are exact, because attention is causal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.records import TrainBatch
from areal_x.engine.train.attention import AttentionPlan, Segments, attention_cost, plan_attention

__all__ = ["MicroBatch", "plan_micro_batches"]

Indices = npt.NDArray[np.int64]

MIN_SHARED_FRACTION = 0.05
"""Prefixes are shared when it saves at least this part of the tokens: rows used twice cost gathers in attention."""
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
    device: torch.device | str = "cpu",
) -> list[MicroBatch]:
    """Cut a batch into micro-batches of at most ``micro_batch_tokens`` rows.

    A sequence longer than the budget gets a micro-batch of its own; a group that is too large is divided. Micro-batches
    are balanced, and sequences of similar length lie together.

    Args:
        target_mask: bool [N], the tokens whose log-probability is wanted; never the first of a sequence.
        sequences: use only these.
        share_prefixes: compute the common prefix of a group's sequences once.

    Returns:
        The micro-batches; none if nothing is wanted.
    """
    offsets_S = batch.offsets[:-1]
    lengths_S = np.asarray(batch.lengths, dtype=np.int64)
    targets = np.flatnonzero(target_mask).astype(np.int64)
    sequence_of_target = np.repeat(np.arange(len(lengths_S)), lengths_S)[targets]
    used_S = np.zeros(len(lengths_S), dtype=np.int64)
    np.maximum.at(used_S, sequence_of_target, targets - offsets_S[sequence_of_target])
    if sequences is not None:
        chosen = np.zeros(len(lengths_S), dtype=np.bool_)
        chosen[sequences] = True
        used_S[~chosen] = 0
    kept = np.flatnonzero(used_S)
    if len(kept) == 0:
        return []
    unit_S = np.arange(len(lengths_S))
    shared_S = np.zeros(len(lengths_S), dtype=np.int64)
    if share_prefixes:
        units, shared = _shared_prefixes(batch, kept, offsets_S[kept], used_S[kept])
        if shared.sum() - _first_of_each(units, shared).sum() >= MIN_SHARED_FRACTION * used_S[kept].sum():
            unit_S[kept], shared_S[kept] = units, shared
    number_S = np.full(len(lengths_S), -1, dtype=np.int64)
    number_S[kept], unit_S[kept] = _assign(used_S[kept], unit_S[kept], shared_S[kept], micro_batch_tokens)
    number_of_target = number_S[sequence_of_target]
    micro_batches = []
    for number in range(int(number_S.max()) + 1):
        members = np.flatnonzero(number_S == number)
        members = members[np.argsort(used_S[members], kind="stable")]
        wanted = number_of_target == number
        micro_batches.append(
            _lay_out(
                np.asarray(batch.input_ids, dtype=np.int64),
                _Members(members, offsets_S[members], used_S[members], shared_S[members], unit_S[members]),
                targets[wanted],
                sequence_of_target[wanted],
                device,
            )
        )
    return micro_batches


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


def _ragged_arange(lengths: Indices) -> Indices:
    """0..length-1 for each length, end to end."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _first_of_each(units: Indices, values: Indices) -> Indices:
    """The value at each unit's first sequence."""
    return values[np.unique(units, return_index=True)[1]]


def _shared_prefixes(batch: TrainBatch, kept: Indices, offsets: Indices, used: Indices) -> tuple[Indices, Indices]:
    """Unit and length of the common prefix of each kept sequence, int64 [S] both; one group id is one unit."""
    _, first, units = np.unique(np.asarray(batch.group_ids)[kept], return_index=True, return_inverse=True)
    limits = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(limits, units, used)
    compared = limits[units]
    local = _ragged_arange(compared)
    own = batch.input_ids[np.repeat(offsets, compared) + local]
    leader = batch.input_ids[np.repeat(offsets[first][units], compared) + local]
    different = own != leader
    np.minimum.at(limits, np.repeat(units, compared)[different], local[different])
    alone = np.bincount(units) == 1
    return units.astype(np.int64), np.where(alone, 0, limits)[units]


def _assign(used: Indices, units: Indices, shared: Indices, budget: int) -> tuple[Indices, Indices]:
    """Micro-batch number and final unit number of each sequence, int64 [S] both.

    Sequences are walked in the order of their unit's longest member and cut where the budget is full. A unit may be cut
    too; each part then has a prefix of its own. The budget is lowered as far as the number of micro-batches allows,
    which balances them.
    """
    longest = np.zeros(units.max() + 1, dtype=np.int64)
    np.maximum.at(longest, units, used)
    order = np.lexsort((used, units, longest[units]))
    used_O, units_O, shared_O = used[order], units[order], shared[order]
    starts_unit = np.concatenate([[True], units_O[1:] != units_O[:-1]])
    costs_O = np.where(starts_unit, used_O, used_O - shared_O)
    ends = np.cumsum(costs_O)
    cuts = _cuts(ends, shared_O * ~starts_unit, budget)
    low, high = -(-int(ends[-1]) // len(cuts)), budget
    while low < high:
        middle = (low + high) // 2
        trial = _cuts(ends, shared_O * ~starts_unit, middle)
        if len(trial) <= len(cuts):
            cuts, high = trial, middle
        else:
            low = middle + 1
    number_O = np.searchsorted(np.asarray(cuts), np.arange(len(order)), side="right")
    numbers = np.empty_like(order)
    numbers[order] = number_O
    _, final_units = np.unique(units * (len(cuts) + 1) + numbers, return_inverse=True)
    return numbers, final_units.astype(np.int64)


def _cuts(ends: Indices, repeated: Indices, budget: int) -> list[int]:
    """Ends (exclusive) of micro-batches of at most ``budget`` tokens; cutting a unit pays ``repeated`` again."""
    cuts: list[int] = []
    start, before = 0, 0
    while start < len(ends):
        limit = before + budget - int(repeated[start])
        start = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        before = int(ends[start - 1])
        cuts.append(start)
    return cuts


def _lay_out(
    input_ids: Indices, members: _Members, targets: Indices, sequence_of_target: Indices, device: torch.device | str
) -> MicroBatch:
    """Give every token of a micro-batch its packed row: all shared prefixes first, then each sequence's own tokens."""
    _, first, unit_of_member = np.unique(members.unit, return_index=True, return_inverse=True)
    prefix_lengths = members.shared[first]
    prefix_starts = np.cumsum(prefix_lengths) - prefix_lengths
    own = members.used - members.shared
    own_starts = prefix_lengths.sum() + np.cumsum(own) - own
    local = _ragged_arange(members.used)
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
    return MicroBatch(
        input_ids=torch.from_numpy(packed_ids)[None].to(device),
        position_ids=torch.from_numpy(position_ids)[None].to(device),
        attention=plan_attention(_segments(members, first, unit_of_member, rows, local), num_rows, device),
        rows=torch.from_numpy(rows[predicting]).to(device),
        targets=torch.from_numpy(input_ids[targets]).to(device),
        positions=torch.from_numpy(targets).to(device),
    )


def _segments(
    members: _Members, first: Indices, unit_of_member: Indices, rows: Indices, local: Indices
) -> list[Segments]:
    """What attends together: one causal segment for each sequence, or one tree for a unit where that is cheaper.

    ``first`` is each unit's first member; ``rows`` and ``local`` are row and position of each token of each member.
    """
    own = members.used - members.shared
    tree_lengths = members.shared[first] + np.bincount(unit_of_member, weights=own).astype(np.int64)
    apart = np.bincount(unit_of_member, weights=attention_cost(members.used))
    is_tree = (members.shared[first] > 0) & (attention_cost(tree_lengths) < apart) & (tree_lengths <= MAX_TREE_ROWS)
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
