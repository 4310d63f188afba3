"""Kernels for segments of various lengths, against PyTorch's attention over buckets.

The kernels themselves run on CUDA only. On a CPU ``reference_varlen`` takes their place, so that the plan, the gathers
and the arguments that the kernels get are tested; what the kernels make of them is tested where there is a GPU.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, LlamaConfig

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.records import TrainBatch
from areal_x.engine.train import varlen
from areal_x.engine.train.attention_plan import SDPA, Segments, plan_attention
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.packing import plan_micro_batches

GPU = torch.device("cuda", 0)


def reference_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    *,
    scale: float | None,
    window: tuple[int, int],
    soft_cap: float,
) -> torch.Tensor:
    """What the kernels say they compute, one segment at a time; ``window`` counts tokens on each side, -1: all."""
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        own_query, own_key, own_value = (part[start:end].transpose(0, 1) for part in (query, key, value))
        own_key, own_value = own_key.repeat_interleave(repeats, 0), own_value.repeat_interleave(repeats, 0)
        scores = own_query @ own_key.transpose(1, 2) * (scale or query.shape[2] ** -0.5)
        if soft_cap:
            scores = torch.tanh(scores / soft_cap) * soft_cap
        places = torch.arange(end - start)
        behind = places[:, None] - places
        hidden = torch.zeros_like(behind, dtype=torch.bool)
        if window[0] >= 0:
            hidden |= behind > window[0]
        if window[1] >= 0:
            hidden |= behind < -window[1]
        outputs.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ own_value).transpose(0, 1))
    return torch.cat(outputs)


def reference_torch_varlen(query, key, value, ends, ends_k, longest, longest_k, *, scale, window_size, enable_gqa):
    """In the place of ``torch.nn.attention.varlen.varlen_attn``, with its checks."""
    assert ends is ends_k and ends.dtype == torch.int32 and longest == longest_k == int(ends.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert all(part.is_contiguous() for part in (query, key, value))
    return reference_varlen(query, key, value, ends, scale=scale, window=window_size, soft_cap=0.0)


def reference_flash_attn(
    query, key, value, ends, ends_k, longest, longest_k, *, softmax_scale, causal, window_size, softcap
):
    """In the place of ``flash_attn.flash_attn_varlen_func``; ``causal`` closes the window on the right."""
    assert ends is ends_k and longest == longest_k
    right = 0 if causal else window_size[1]
    return reference_varlen(
        query, key, value, ends, scale=softmax_scale, window=(window_size[0], right), soft_cap=softcap
    )


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel's name; behind it stands the reference."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_torch_varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=reference_flash_attn))  # type: ignore[arg-type]
    name: str = request.param
    return name


def loss_and_gradients(engine: FSDPEngine, batch: TrainBatch) -> tuple[float, list[torch.Tensor]]:
    engine.discard()
    engine.accumulate(batch)
    assert engine.updates.totals is not None
    gradients = [value.grad.clone() for value in engine.model.parameters() if value.grad is not None]
    return engine.updates.totals.update_loss.item(), gradients


@pytest.mark.parametrize(
    ("kernel", "architecture"),
    [
        (varlen.TORCH_VARLEN, "qwen3"),
        (varlen.TORCH_VARLEN, "qwen3-sliding"),
        (varlen.TORCH_VARLEN, "gpt2"),
        (varlen.FLASH_ATTN, "qwen3-sliding"),
        (varlen.FLASH_ATTN, "gemma2"),
    ],
    indirect=["kernel"],
)
@pytest.mark.parametrize("budget", [16384, 60])
def test_segments_end_to_end_attend_as_buckets_do(
    make_model, make_batch, kernel: str, architecture: str, budget: int
) -> None:
    """Shared prefixes, which buckets may take as trees, windows, grouped heads and, where the kernel has it, a cap."""
    train = TrainConfig(micro_batch_tokens=budget)
    engine = FSDPEngine(make_model(architecture), train, AlgorithmConfig(), ModelConfig(device="cpu"))
    batch = make_batch([1, 3, 4, 2, 5])
    expected_loss, expected = loss_and_gradients(engine, batch)
    engine.policy.kernel = kernel
    assert all(not micro_batch.attention.buckets for micro_batch in engine._plan(batch, batch.loss_mask))
    loss, gradients = loss_and_gradients(engine, batch)
    assert abs(loss / expected_loss - 1) <= 1e-6
    joined, wanted = (torch.cat([value.flatten() for value in values]) for values in (gradients, expected))
    assert ((joined - wanted).norm() / wanted.norm()).item() <= 1e-6


def test_a_plan_without_shared_rows_gathers_nothing(make_batch) -> None:
    batch = make_batch([1, 1, 1], completion=(3, 9))
    (apart,) = plan_micro_batches(batch, batch.loss_mask, 1000, kernel=varlen.TORCH_VARLEN)
    assert apart.attention.in_order
    assert apart.attention.segment_ends is not None
    lengths = apart.attention.segment_ends.diff()
    assert lengths.sum() == apart.num_rows and apart.attention.longest == lengths.max()
    grouped = make_batch([4], prompt=(9, 10), completion=(3, 9))
    (shared,) = plan_micro_batches(grouped, grouped.loss_mask, 1000, kernel=varlen.TORCH_VARLEN)
    assert not shared.attention.in_order
    assert len(shared.attention.slots) == shared.num_rows + len(shared.attention.extra_rows) > shared.num_rows


def test_segment_ends_of_several_parts() -> None:
    parts = [
        Segments(np.array([4, 0, 1]), np.array([1, 2]), np.array([0, 0, 1])),
        Segments(np.array([2, 3, 0]), np.array([3]), np.array([0, 1, 2])),
    ]
    plan = plan_attention(parts, 5, kernel=varlen.TORCH_VARLEN)
    assert plan.segment_ends is not None
    assert plan.segment_ends.tolist() == [0, 1, 3, 6]
    assert plan.longest == 3
    assert plan.slots.tolist() == [4, 0, 1, 2, 3, 0]
    assert plan.owners.tolist() == [1, 2, 3, 4, 0]
    assert (plan.extra_slots.tolist(), plan.extra_rows.tolist()) == ([5], [0])


def test_the_kernel_is_chosen_by_device_numbers_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found: list[Any] = []
    monkeypatch.setattr(varlen, "_has_flash_attn", lambda: bool(found))
    plain, capped = LlamaConfig(), Gemma2Config()
    assert varlen.choose_kernel(plain, GPU, torch.bfloat16) == varlen.TORCH_VARLEN
    assert varlen.choose_kernel(plain, torch.device("cpu"), torch.bfloat16) == SDPA
    assert varlen.choose_kernel(plain, GPU, torch.float32) == SDPA
    for head_size in (512, 20):
        assert varlen.choose_kernel(LlamaConfig(head_dim=head_size), GPU, torch.bfloat16) == SDPA
    assert varlen.choose_kernel(capped, GPU, torch.bfloat16) == SDPA
    found.append("flash_attn")
    assert varlen.choose_kernel(capped, GPU, torch.bfloat16) == varlen.FLASH_ATTN
    assert varlen.choose_kernel(plain, GPU, torch.bfloat16) == varlen.TORCH_VARLEN
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert varlen.choose_kernel(plain, GPU, torch.bfloat16) == SDPA


def test_a_soft_cap_that_the_kernel_lacks_is_refused() -> None:
    states = torch.zeros(2, 1, 8)
    ends = torch.tensor([0, 2], dtype=torch.int32)
    options = {"segment_ends": ends, "longest": 2, "scale": None, "window": None}
    with pytest.raises(ValueError, match="no soft cap"):
        varlen.varlen_attention(varlen.TORCH_VARLEN, states, states, states, soft_cap=50.0, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 5])
def test_the_real_kernel_computes_what_the_reference_says(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor([0, 1, 20, 300], dtype=torch.int32)
    shapes = [(300, heads, 64) for heads in (8, 2, 2, 8)]
    *states, upstream = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    exact = [part.double().requires_grad_() for part in states]
    left = -1 if window is None else window - 1
    expected = reference_varlen(*exact, ends, scale=None, window=(left, 0), soft_cap=0.0)
    on_gpu = [part.to(GPU).requires_grad_() for part in states]
    assert varlen.choose_kernel(LlamaConfig(), GPU, torch.bfloat16) == varlen.TORCH_VARLEN
    got = varlen.varlen_attention(
        *(varlen.TORCH_VARLEN, *on_gpu),
        segment_ends=ends.to(GPU),
        longest=280,
        scale=None,
        window=window,
        soft_cap=None,
    )
    wanted = [expected, *torch.autograd.grad(expected, exact, upstream.double())]
    found = [got, *torch.autograd.grad(got, on_gpu, upstream.to(GPU))]
    for mine, other in zip(found, wanted, strict=True):
        assert ((mine.double().cpu() - other).norm() / other.norm()).item() < 0.01
