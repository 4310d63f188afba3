"""Attention over slots: a preallocated key-value cache and the function that transformers calls for every layer.

A forward pass is one packed row of tokens ``[1, num_rows + N]``: first one token of each live row (rows 0 to
``num_rows - 1`` of the cache, contiguous, so nothing is gathered), then N prefix tokens of rows that join or are
recomputed. Within each layer the prefix's keys and values are written first, so that a row which joins decodes its last
prompt token in the very pass that fills its prefix.

Axis letters: S slots, R rows that decode, G key-value heads, Q query heads per key-value head, D head size, L key
positions in use, U prefix segments, T longest segment, N prefix tokens, M rows that get a segment (several rows may
share one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from areal_x.api.errors import EngineError

__all__ = ["SLOT_ATTENTION", "Prefix", "SlotCache", "StepPlan", "make_prefix", "run_with_cache"]

SLOT_ATTENTION = "areal_x_slots"
_LENGTH_STEP = 16


@dataclass(frozen=True, slots=True)
class Prefix:
    """Prefix segments of one forward pass. ``pad`` int64 [U * T] and ``unpad`` int64 [N] map packed and padded order;
    both are None when all segments have T tokens. ``rows`` int64 [M]; ``source`` int64 [M] is each row's segment, None
    when row m takes segment m."""

    num_segments: int
    width: int
    pad: torch.Tensor | None
    unpad: torch.Tensor | None
    rows: torch.Tensor
    source: torch.Tensor | None


def make_prefix(
    lengths: npt.NDArray[np.int64], rows: Sequence[int], source: Sequence[int], device: torch.device
) -> Prefix:
    """Index tensors for segments of these ``lengths`` [U], of which row ``rows[m]`` takes segment ``source[m]``."""
    num_segments, width = len(lengths), int(lengths.max())
    pad = unpad = None
    if int(lengths.min()) != width:
        columns = np.arange(width)
        starts = np.cumsum(lengths) - lengths
        # A padded place repeats the segment's last token, so that what lies there is finite.
        pad_index = starts[:, None] + np.minimum(columns, lengths[:, None] - 1)
        unpad_index = np.flatnonzero(columns < lengths[:, None])
        pad = torch.from_numpy(pad_index.reshape(-1)).to(device)
        unpad = torch.from_numpy(unpad_index).to(device)
    identity = list(source) == list(range(num_segments))
    return Prefix(
        num_segments=num_segments,
        width=width,
        pad=pad,
        unpad=unpad,
        rows=torch.tensor(rows, dtype=torch.int64, device=device),
        source=None if identity else torch.tensor(source, dtype=torch.int64, device=device),
    )


@dataclass(slots=True)
class StepPlan:
    """What one forward pass does; the same for every layer. ``write_index`` int64 [R * G] is where the new keys go in
    the cache seen as [S * G * max_length, D]; ``biases`` holds, for each sliding window in use, float [R * G, 1, L]."""

    num_rows: int
    length: int = 0
    positions: torch.Tensor | None = None
    write_index: torch.Tensor | None = None
    biases: dict[int | None, torch.Tensor] = field(default_factory=dict)
    prefix: Prefix | None = None


class SlotCache:
    """Keys and values of every slot, ``[layers][S, G, max_length, D]``, and the plan of the forward pass at hand.

    Layers are allocated when first called, since only the call tells the number of heads and their size. Zeroed memory:
    what was never written is multiplied by an attention weight of zero and must be finite.
    """

    def __init__(self, num_slots: int, max_length: int) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.windows: dict[int, int | None] = {}
        """The sliding window that each layer asked for, filled as layers are called."""
        self.plan = StepPlan(0)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of row ``source`` to row ``target``."""
        for layer, keys in self.keys.items():
            keys[target, :, :length] = keys[source, :, :length]
            values = self.values[layer]
            values[target, :, :length] = values[source, :, :length]

    def plan_step(self, positions: npt.NDArray[np.int64], prefix: Prefix | None, device: torch.device) -> None:
        """Plan a pass in which row r decodes one token at ``positions[r]`` (int64 [R])."""
        plan = StepPlan(len(positions), prefix=prefix)
        if len(positions):
            needed = int(positions.max()) + 1
            plan.length = min(-(-needed // _LENGTH_STEP) * _LENGTH_STEP, self.max_length)
            plan.positions = torch.from_numpy(positions).to(device)
        self.plan = plan

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The cache of one layer; ``key`` and ``value`` [1, G, N, D] give its sizes on the first call."""
        keys = self.keys.get(index)
        if keys is None:
            shape = (self.num_slots, key.shape[1], self.max_length)
            keys = self.keys[index] = key.new_zeros(*shape, key.shape[3])
            self.values[index] = value.new_zeros(*shape, value.shape[3])
        return keys, self.values[index]

    def write_index(self, num_heads: int) -> torch.Tensor:
        """Where the new token of each row and head lies, computed once per pass."""
        plan = self.plan
        if plan.write_index is None:
            assert plan.positions is not None
            heads = torch.arange(plan.num_rows * num_heads, device=plan.positions.device) * self.max_length
            plan.write_index = (heads.view(plan.num_rows, num_heads) + plan.positions[:, None]).view(-1)
        return plan.write_index

    def bias(self, window: int | None, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        """0 where a row may attend, minus infinity elsewhere, [R * G, 1, L]; computed once per pass and window."""
        plan = self.plan
        bias = plan.biases.get(window)
        if bias is None:
            assert plan.positions is not None
            columns = torch.arange(plan.length, device=plan.positions.device)
            hidden = columns > plan.positions[:, None]
            if window is not None:
                hidden |= columns <= plan.positions[:, None] - window
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            bias = bias[:, None].expand(-1, num_heads, -1).reshape(plan.num_rows * num_heads, 1, plan.length)
            plan.biases[window] = bias
        return bias


_active: SlotCache | None = None


def run_with_cache(cache: SlotCache, model: torch.nn.Module, **inputs: Any) -> Any:
    """Call ``model`` with ``cache`` as the one that slot attention reads and writes."""
    global _active
    _active = cache
    try:
        return model(**inputs)
    finally:
        _active = None


def _slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls: query [1, G * Q, R + N, D] to output [1, R + N, G * Q, D]."""
    cache = _active
    if cache is None:
        raise EngineError("slot attention runs inside the embedded engine only")
    index = getattr(module, "layer_idx", None)
    if index is None or s_aux is not None:
        raise EngineError(f"{type(module).__name__} has attention sinks or no layer index: not supported by slots")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    cache.windows[index] = sliding_window
    window = sliding_window if sliding_window is not None and sliding_window < cache.max_length else None
    keys, values = cache.layer(index, key, value)
    plan = cache.plan
    rows = plan.num_rows
    prefix_out = None
    if plan.prefix is not None:
        prefix_out = _attend_prefix(
            plan.prefix, query[0, :, rows:], key[0, :, rows:], value[0, :, rows:], keys, values, scale, window, softcap
        )
        if rows == 0:
            return prefix_out, None
        query, key, value = query[:, :, :rows], key[:, :, :rows], value[:, :, :rows]
    num_heads, head_size = key.shape[1], key.shape[3]
    write_index = cache.write_index(num_heads)
    keys.view(-1, head_size).index_copy_(0, write_index, key[0].transpose(0, 1).reshape(-1, head_size))
    values.view(-1, value.shape[3]).index_copy_(0, write_index, value[0].transpose(0, 1).reshape(-1, value.shape[3]))
    flat_query = query[0].transpose(0, 1).reshape(rows * num_heads, -1, head_size)
    flat_keys = keys[:rows, :, : plan.length].flatten(0, 1)
    bias = cache.bias(window, num_heads, query.dtype)
    if softcap is None:
        scores = torch.baddbmm(bias, flat_query, flat_keys.transpose(1, 2), alpha=scale)
    else:
        scores = _cap(torch.bmm(flat_query, flat_keys.transpose(1, 2)) * scale, softcap) + bias
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    output = torch.bmm(weights, values[:rows, :, : plan.length].flatten(0, 1)).view(1, rows, query.shape[1], -1)
    return (output if prefix_out is None else torch.cat([output, prefix_out], 1)), None


def _cap(scores: torch.Tensor, softcap: float) -> torch.Tensor:
    return torch.tanh(scores / softcap) * softcap


def _attend_prefix(
    prefix: Prefix,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention within each segment; writes the segments' keys and values; [1, N, G * Q, D]."""
    query, key, value = (_pad(tensor, prefix) for tensor in (query, key, value))
    for cache, new in ((keys, key), (values, value)):
        cache[prefix.rows, :, : prefix.width] = new if prefix.source is None else new[prefix.source]
    if softcap is None and (window is None or prefix.width <= window):
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    else:
        out = _attend_masked(query, key, value, scale, window, softcap)
    flat = out.transpose(1, 2).reshape(-1, out.shape[1], out.shape[3])
    return (flat if prefix.unpad is None else flat.index_select(0, prefix.unpad))[None]


def _pad(tensor: torch.Tensor, prefix: Prefix) -> torch.Tensor:
    """[H, N, D] packed to [U, H, T, D] padded."""
    if prefix.pad is not None:
        tensor = tensor.index_select(1, prefix.pad)
    return tensor.reshape(tensor.shape[0], prefix.num_segments, prefix.width, -1).transpose(0, 1)


def _attend_masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    """Causal attention with a sliding window or capped scores, [U, H, T, D]."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scale
    if softcap is not None:
        scores = _cap(scores, softcap)
    places = torch.arange(query.shape[2], device=query.device)
    hidden = places > places[:, None]
    if window is not None:
        hidden |= places <= places[:, None] - window
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1, dtype=torch.float32).to(value.dtype)
    return weights @ value.repeat_interleave(groups, 1)


AttentionInterface.register(SLOT_ATTENTION, _slot_attention)
