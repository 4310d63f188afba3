"""Attention kernels for segments of various lengths end to end, on CUDA: PyTorch's own, or flash attention's.

Neither pads, and neither takes a mask, so groups that share a prefix do not attend as one tree here: each sample
attends over a copy of the prefix's keys and values. On a GPU that costs less than the squared mask of a tree.

Axis letters: K tokens of all segments, n segments, D head size.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch

from areal_x.engine.train.attention_plan import SDPA

__all__ = ["FLASH_ATTN", "KERNELS", "TORCH_VARLEN", "choose_kernel", "varlen_attention"]

TORCH_VARLEN = "torch_varlen"
FLASH_ATTN = "flash_attn"
MAX_HEAD_SIZE, HEAD_SIZE_MULTIPLE = 256, 8
"""Largest D that the kernels take, and what it has to be a multiple of."""


def choose_kernel(config: Any, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the kernel for a model of configuration ``config`` that computes in ``dtype`` on ``device``.

    PyTorch's where it can do what the model asks, else flash attention's if that is installed, else ``SDPA``.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return SDPA
    text = config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head_size > MAX_HEAD_SIZE or head_size % HEAD_SIZE_MULTIPLE or torch.cuda.get_device_capability(device) < (8, 0):
        return SDPA
    if getattr(text, "attn_logit_softcapping", None) is None and _has_torch_varlen():
        return TORCH_VARLEN
    return FLASH_ATTN if _has_flash_attn() else SDPA


def varlen_attention(
    kernel: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    segment_ends: torch.Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
    soft_cap: float | None,
) -> torch.Tensor:
    """Causal attention within each segment; query [K, heads, D], result [K, heads, D].

    Args:
        segment_ends: int32 [n + 1], 0 and the end of each segment.
        longest: tokens of the longest segment.
        window: a token sees itself and the ``window - 1`` tokens before.
        soft_cap: of the scores, where the kernel has it.

    Raises:
        ValueError: ``soft_cap`` with a kernel that has none.
    """
    # Kernels count the tokens before the own one.
    left = -1 if window is None or window >= longest else window - 1
    states = (part.contiguous() for part in (query, key, value))
    return KERNELS[kernel](*states, segment_ends, longest, scale, left, soft_cap)


def _has_torch_varlen() -> bool:
    """Whether this PyTorch has the kernel, with grouped heads and windows."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "enable_gqa", "scale"} <= set(inspect.signature(varlen_attn).parameters)


def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _torch_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scale: float | None,
    left: int,
    soft_cap: float | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if soft_cap is not None:
        raise ValueError("PyTorch's varlen attention has no soft cap; plan with flash_attn or sdpa")
    output = varlen_attn(
        *(query, key, value, ends, ends, longest, longest),
        scale=scale,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output


def _flash_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scale: float | None,
    left: int,
    soft_cap: float | None,
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    output: torch.Tensor = flash_attn_varlen_func(
        *(query, key, value, ends, ends, longest, longest),
        softmax_scale=scale,
        causal=True,
        window_size=(left, 0 if left >= 0 else -1),
        softcap=soft_cap or 0.0,
    )
    return output


KERNELS: dict[str, Callable[..., torch.Tensor]] = {TORCH_VARLEN: _torch_varlen, FLASH_ATTN: _flash_attn}
"""By name: (query, key, value, segment_ends, longest, scale, tokens seen to the left or -1, soft_cap) -> output."""
