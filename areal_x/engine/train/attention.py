"""Attention over packed sequences, through transformers' attention interface.

Segments (sequences of one micro-batch) are sorted into buckets of similar length. Each bucket is gathered to a
right-padded [n, L, heads, D] layout and attends causally in one call: with padding on the right, causal attention never
sees it, so no mask is needed. Short samples of one group, whose prompt is computed once, may attend as one tree
instead: one segment with a mask by which each branch sees the prompt and itself. The plan is made once per micro-batch
and used by every layer.

Axis letters: P packed rows, K slots of all buckets (n * L each), D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["PACKED_ATTENTION", "AttentionPlan", "Bucket", "Segments", "attention_cost", "plan_attention"]

PACKED_ATTENTION = "areal_x_packed"
"""Name under which transformers finds this attention. It has no mask function, so models build no mask for it."""

Indices = npt.NDArray[np.int64]

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

    buckets: tuple[Bucket, ...]
    slots: torch.Tensor
    """int64 [K]: the packed row of each slot. Padding slots hold row 0; nothing reads what comes out of them."""
    owners: torch.Tensor
    """int64 [P]: the slot whose result a packed row takes."""
    extra_slots: torch.Tensor
    """int64: slots that use a row again (shared prefixes)."""
    extra_rows: torch.Tensor
    """int64: the row of each of these slots."""


def attention_cost(lengths: Indices) -> npt.NDArray[np.float64]:
    """Relative cost of attending over one segment of each length."""
    return lengths * (SLOT_COST + PAIR_COST * lengths)


def plan_attention(parts: Sequence[Segments], num_rows: int, device: torch.device | str = "cpu") -> AttentionPlan:
    """Plan the buckets of all ``parts`` over ``num_rows`` packed rows; each row must come up at least once."""
    buckets: list[Bucket] = []
    rows = np.concatenate([part.rows for part in parts])
    slot_of_token = np.empty(len(rows), dtype=np.int64)
    num_slots = num_tokens = 0
    for part in parts:
        bounds = _bucket_bounds(part.lengths)
        counts = np.diff(bounds, prepend=0)
        widths = np.repeat(_rounded(part.lengths[bounds - 1]), counts)
        ends = np.cumsum(widths)
        token_ends = np.cumsum(part.lengths)
        inside = np.repeat(ends - widths - (token_ends - part.lengths), part.lengths) + np.arange(len(part.rows))
        slot_of_token[num_tokens : num_tokens + len(part.rows)] = num_slots + inside
        buckets += _buckets(part, inside, bounds, widths, device)
        num_slots += int(ends[-1])
        num_tokens += len(part.rows)
    slots = np.zeros(num_slots, dtype=np.int64)
    slots[slot_of_token] = rows
    owners = np.empty(num_rows, dtype=np.int64)
    owners[rows[::-1]] = slot_of_token[::-1]
    again = owners[rows] != slot_of_token
    return AttentionPlan(
        buckets=tuple(buckets),
        slots=torch.from_numpy(slots).to(device),
        owners=torch.from_numpy(owners).to(device),
        extra_slots=torch.from_numpy(slot_of_token[again]).to(device),
        extra_rows=torch.from_numpy(rows[again]).to(device),
    )


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


class _ToSlots(torch.autograd.Function):
    """[P, heads, D] -> [K, heads, D]. Its backward pass gathers too, where autograd's would scatter."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        ctx.plan = plan
        return values.index_select(0, plan.slots)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        plan: AttentionPlan = ctx.plan
        result = grad.index_select(0, plan.owners)
        if len(plan.extra_rows):
            result.index_add_(0, plan.extra_rows, grad.index_select(0, plan.extra_slots))
        return result, None


class _FromSlots(torch.autograd.Function):
    """[K, heads, D] -> [P, heads, D]: each row takes its owner's result."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        ctx.plan = plan
        return values.index_select(0, plan.owners)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        plan: AttentionPlan = ctx.plan
        result = grad.new_zeros((len(plan.slots), *grad.shape[1:]))
        return result.index_copy_(0, plan.owners, grad), None


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    attention_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in transformers' signature; query [1, heads, P, D], result [1, P, heads, D].

    Raises:
        ValueError: the model asks for something that packed attention does not do.
    """
    if attention_plan is None:
        raise ValueError(f"attention {PACKED_ATTENTION!r} needs the keyword attention_plan in the model's forward call")
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported or dropout or not getattr(module, "is_causal", True):
        reason = ", ".join(unsupported) or ("dropout" if dropout else "attention that is not causal")
        raise ValueError(f"packed attention does not support {reason} ({type(module).__name__})")
    slots = [_ToSlots.apply(states.squeeze(0).transpose(0, 1), attention_plan) for states in (query, key, value)]
    sizes = [bucket.n * bucket.length for bucket in attention_plan.buckets]
    outputs = []
    for bucket, *parts in zip(attention_plan.buckets, *(states.split(sizes) for states in slots), strict=True):
        padded_query, padded_key, padded_value = (
            part.view(bucket.n, bucket.length, *part.shape[1:]).transpose(1, 2) for part in parts
        )
        mask = _mask(bucket, sliding_window, query.device)
        output = scaled_dot_product_attention(
            padded_query,
            padded_key,
            padded_value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output.transpose(1, 2).reshape(bucket.n * bucket.length, *output.shape[1::2]))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _FromSlots.apply(joined, attention_plan)[None], None


def _mask(bucket: Bucket, window: int | None, device: torch.device) -> torch.Tensor | None:
    """What the bucket's slots may see; in a window, a token sees itself and the ``window - 1`` positions before."""
    if window is None or window >= bucket.length:
        return bucket.mask
    if bucket.mask is not None and bucket.positions is not None:
        near = bucket.positions[:, :, None] - bucket.positions[:, None, :] < window
        # A slot always sees itself, padding too, so no row of the softmax is empty.
        return bucket.mask & near[:, None]
    distance = torch.arange(bucket.length, device=device)[:, None] - torch.arange(bucket.length, device=device)
    return (distance >= 0) & (distance < window)


AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
