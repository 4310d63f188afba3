"""Attention over packed sequences, through transformers' attention interface; attention_plan.py says who sees whom.

Axis letters: P packed rows, K slots of the plan, n segments of a bucket, L their padded length, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from areal_x.engine.train.attention_plan import AttentionPlan, Bucket
from areal_x.engine.train.varlen import varlen_attention

__all__ = ["PACKED_ATTENTION"]

PACKED_ATTENTION = "areal_x_packed"
"""Name under which transformers finds this attention. It has no mask function, so models build no mask for it."""


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
    softcap: float | None = None,
    attention_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in transformers' signature; query [1, heads, P, D], result [1, P, heads, D].

    With sequence parallelism, P are this rank's rows.

    Raises:
        ValueError: the model asks for something that packed attention does not do.
    """
    if attention_plan is None:
        raise ValueError(f"attention {PACKED_ATTENTION!r} needs the keyword attention_plan in the model's forward call")
    unsupported = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported or dropout or not getattr(module, "is_causal", True):
        reason = ", ".join(unsupported) or ("dropout" if dropout else "attention that is not causal")
        raise ValueError(f"packed attention does not support {reason} ({type(module).__name__})")
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    exchange = attention_plan.exchange
    if exchange is not None:
        query, key, value = exchange.to_heads(query, key, value)
    output = _attend(query, key, value, attention_plan, _Scores(scaling, sliding_window, softcap))
    if exchange is not None:
        output = exchange.to_rows(output)
    return output[None], None


@dataclass(frozen=True, slots=True)
class _Scores:
    """What a layer does to its scores before the softmax."""

    scale: float | None
    """Factor; None: 1 / sqrt(D)."""
    window: int | None
    """A token sees itself and the ``window - 1`` positions before."""
    soft_cap: float | None
    """``x -> cap * tanh(x / cap)`` after the scale (Gemma 2)."""


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, scores: _Scores
) -> torch.Tensor:
    """Attention of all P rows; query [P, heads, D], result [P, heads, D of the values]."""
    if not plan.in_order:
        query, key, value = (_ToSlots.apply(states, plan) for states in (query, key, value))
    if plan.segment_ends is not None:
        output = varlen_attention(
            plan.kernel,
            *(query, key, value),
            segment_ends=plan.segment_ends,
            longest=plan.longest,
            scale=scores.scale,
            window=scores.window,
            soft_cap=scores.soft_cap,
        )
    else:
        sizes = [bucket.n * bucket.length for bucket in plan.buckets]
        parts = zip(plan.buckets, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        outputs = [_bucket_attention(bucket, q, k, v, scores) for bucket, q, k, v in parts]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    result: torch.Tensor = output if plan.in_order else _FromSlots.apply(output, plan)
    return result


def _bucket_attention(
    bucket: Bucket, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: _Scores
) -> torch.Tensor:
    """Attention within one bucket; query [n * L, heads, D], result [n * L, heads, D of the values]."""
    padded_query, padded_key, padded_value = (
        part.view(bucket.n, bucket.length, *part.shape[1:]).transpose(1, 2) for part in (query, key, value)
    )
    mask = _mask(bucket, scores.window, query.device)
    if scores.soft_cap is None:
        output = scaled_dot_product_attention(
            padded_query,
            padded_key,
            padded_value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scores.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    else:
        output = _capped_attention(padded_query, padded_key, padded_value, mask, scores)
    return output.transpose(1, 2).reshape(bucket.n * bucket.length, *output.shape[1::2])


def _capped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scores: _Scores
) -> torch.Tensor:
    """Attention with capped scores, by its formula: PyTorch's function has no cap. All [n, heads, L, D]."""
    length, scale, cap = query.shape[2], scores.scale or query.shape[3] ** -0.5, scores.soft_cap
    assert cap is not None
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril_()
    grouped = query.unflatten(1, (key.shape[1], -1))
    capped = torch.tanh(grouped @ key[:, :, None].transpose(-1, -2) * (scale / cap)) * cap
    seen = mask if mask.ndim == 2 else mask[:, :, None]
    weights = torch.softmax(capped.masked_fill(~seen, -torch.inf), -1)
    return (weights @ value[:, :, None]).flatten(1, 2)


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
