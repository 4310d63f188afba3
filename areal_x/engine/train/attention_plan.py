"""How the tokens of one micro-batch attend: planned once, used by every layer.

For PyTorch's ``scaled_dot_product_attention``, segments (sequences of one micro-batch) are sorted into buckets of
similar length. Each bucket is gathered to a right-padded [n, L, heads, D] layout and attends causally in one call: with
padding on the right, causal attention never sees it, so no mask is needed. Short samples of one group, whose prompt is
computed once, may attend as one tree instead: one segment with a mask by which each branch sees the prompt and itself.

Kernels for segments of various lengths (varlen.py) take all of them end to end, without padding.

Axis letters: P packed rows, K slots (of all buckets, n * L each; or of all segments, without padding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from areal_x.engine.train.computed_tokens import Indices

if TYPE_CHECKING:
    from areal_x.engine.train.sequence_parallel import HeadExchange

__all__ = ["SDPA", "AttentionPlan", "Bucket", "Segments", "attention_cost", "plan_attention"]

SDPA = "sdpa"
"""Name of the kernel that takes buckets."""

# Costs of one layer, forward and backward, on one CPU core, in microseconds; only their ratios matter.
BUCKET_COST, SLOT_COST, PAIR_COST = 120.0, 1.5, 0.02
LENGTH_MULTIPLE = 8
"""Bucket lengths are rounded up to this: the CPU kernel is up to twice as fast there as at odd lengths."""
MAX_CANDIDATE_LENGTHS = 64


@dataclass(frozen=True, slots=True)
class Segments:
    """What attends together: segments end to end, shortest first. All fields are int64, by token except ``lengths``."""

    rows: Indices
    """Packed row of each token."""
    lengths: Indices
    positions: Indices
    branches: Indices | None = None
    """Of a tree: -1 on the trunk, else the branch. None: plain causal segments."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """``n`` segments padded to ``length`` slots."""

    n: int
    length: int
    mask: torch.Tensor | None
    """bool [n, 1, L, L], what each slot may see, of trees; None: causal."""
    positions: torch.Tensor | None
    """int64 [n, L] of trees, for a sliding window."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Where the tokens of one micro-batch go for attention, and where its results come from."""

    kernel: str
    """``SDPA``, or one of varlen.py."""
    buckets: tuple[Bucket, ...]
    """Of SDPA; empty for other kernels."""
    segment_ends: torch.Tensor | None
    """int32 [n + 1], 0 and the end of each segment, for other kernels."""
    longest: int
    """Tokens of the longest segment."""
    slots: torch.Tensor
    """int64 [K]: the packed row of each slot. Padding slots hold row 0; nothing reads what comes out of them."""
    owners: torch.Tensor
    """int64 [P]: the slot whose result a packed row takes."""
    extra_slots: torch.Tensor
    """int64: slots that use a row again (shared prefixes)."""
    extra_rows: torch.Tensor
    """int64: the row of each of these slots."""
    in_order: bool
    """Slot and row are the same everywhere, so nothing has to be gathered."""
    exchange: HeadExchange | None = None
    """With sequence parallelism: how ranks turn parts of the rows into parts of the heads."""


def attention_cost(lengths: Indices) -> npt.NDArray[np.float64]:
    """Relative cost of attending over one segment of each length."""
    return lengths * (SLOT_COST + PAIR_COST * lengths)


def plan_attention(
    parts: Sequence[Segments], num_rows: int, device: torch.device | str = "cpu", kernel: str = SDPA
) -> AttentionPlan:
    """Plan the attention of all ``parts`` over ``num_rows`` packed rows; each row must come up at least once."""
    rows = np.concatenate([part.rows for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    if kernel == SDPA:
        buckets, slot_of_token, num_slots = _plan_buckets(parts, device)
        segment_ends = None
    else:
        buckets, slot_of_token, num_slots = (), np.arange(len(rows)), len(rows)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        segment_ends = torch.from_numpy(ends).to(device)
    slots = np.zeros(num_slots, dtype=np.int64)
    slots[slot_of_token] = rows
    owners = np.empty(num_rows, dtype=np.int64)
    owners[rows[::-1]] = slot_of_token[::-1]
    again = owners[rows] != slot_of_token
    return AttentionPlan(
        kernel=kernel,
        buckets=buckets,
        segment_ends=segment_ends,
        longest=int(lengths.max()),
        slots=torch.from_numpy(slots).to(device),
        owners=torch.from_numpy(owners).to(device),
        extra_slots=torch.from_numpy(slot_of_token[again]).to(device),
        extra_rows=torch.from_numpy(rows[again]).to(device),
        in_order=num_slots == num_rows and bool((slots == np.arange(num_rows)).all()),
    )


def _plan_buckets(parts: Sequence[Segments], device: torch.device | str) -> tuple[tuple[Bucket, ...], Indices, int]:
    """Buckets, the slot of each token of all parts, and the number of slots."""
    buckets: list[Bucket] = []
    slot_of_token = []
    num_slots = 0
    for part in parts:
        bounds = _bucket_bounds(part.lengths)
        counts = np.diff(bounds, prepend=0)
        widths = np.repeat(_rounded(part.lengths[bounds - 1]), counts)
        ends = np.cumsum(widths)
        token_ends = np.cumsum(part.lengths)
        inside = np.repeat(ends - widths - (token_ends - part.lengths), part.lengths) + np.arange(len(part.rows))
        slot_of_token.append(num_slots + inside)
        buckets += _buckets(part, inside, bounds, widths, device)
        num_slots += int(ends[-1])
    return tuple(buckets), np.concatenate(slot_of_token), num_slots


def _buckets(
    part: Segments, slot_of_token: Indices, bounds: Indices, widths: Indices, device: torch.device | str
) -> list[Bucket]:
    """The buckets of one part; ``slot_of_token`` counts within the part, ``widths`` are the padded lengths."""
    ends = np.cumsum(widths)
    if part.branches is not None:
        branches, positions = np.full(int(ends[-1]), -2), np.zeros(int(ends[-1]), dtype=np.int64)
        branches[slot_of_token], positions[slot_of_token] = part.branches, part.positions
    buckets = []
    first = 0
    for last in bounds:
        n, length = int(last - first), int(widths[first])
        mask = slot_positions = None
        if part.branches is not None:
            span = slice(int(ends[first]) - length, int(ends[last - 1]))
            branch = torch.from_numpy(branches[span]).to(device).view(n, length)
            slot_positions = torch.from_numpy(positions[span]).to(device).view(n, length)
            seen = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == -1)
            mask = torch.tril(seen)[:, None]
        buckets.append(Bucket(n, length, mask, slot_positions))
        first = int(last)
    return buckets


def _rounded(lengths: Indices) -> Indices:
    return -(-lengths // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def _bucket_bounds(lengths: Indices) -> Indices:
    """End (exclusive) of each bucket of the ascending ``lengths``: the cheapest division, by dynamic programming."""
    rounded = _rounded(lengths)
    ends = np.flatnonzero(np.diff(rounded, append=rounded[-1] + 1)) + 1
    if len(ends) > MAX_CANDIDATE_LENGTHS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, MAX_CANDIDATE_LENGTHS).round().astype(np.int64))]
    widths = rounded[ends - 1].astype(np.float64)
    starts = np.concatenate([[0], ends[:-1]])
    best = np.zeros(len(ends) + 1)
    choice = np.zeros(len(ends), dtype=np.int64)
    for last in range(len(ends)):
        slots = (ends[last] - starts[: last + 1]) * widths[last]
        costs = best[: last + 1] + BUCKET_COST + slots * (SLOT_COST + PAIR_COST * widths[last])
        choice[last] = int(costs.argmin())
        best[last + 1] = costs[choice[last]]
    bounds = []
    last = len(ends)
    while last > 0:
        bounds.append(int(ends[last - 1]))
        last = int(choice[last - 1])
    return np.array(bounds[::-1], dtype=np.int64)
