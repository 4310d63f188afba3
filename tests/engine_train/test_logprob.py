"""Chunked log-probabilities: right, and never the whole matrix."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, Gemma2Config, Gemma3TextConfig, GraniteConfig, Qwen3Config

from areal_x.engine.train.logprob import PLAIN_LOGITS, LogitsTransform, chunked_logprobs


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, temperature: float
):
    logprobs = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias) / temperature, dim=-1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "chunk"), [(1, 4), (4, 4), (37, 5), (37, 1024)])
def test_equals_the_plain_formula(rows: int, chunk: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(50, dtype=torch.float64, generator=generator, requires_grad=True) if with_bias else None
    targets = torch.randint(0, 50, (rows,), generator=generator)
    inputs = [hidden, weight] + ([bias] if bias is not None else [])
    upstream = torch.randn(rows, dtype=torch.float64, generator=generator)
    expected, expected_entropy = plain(hidden, weight, bias, targets, 0.7)
    got, entropy = chunked_logprobs(hidden, weight, targets, bias=bias, temperature=0.7, chunk_tokens=chunk)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, expected_entropy.detach(), atol=1e-12, rtol=0)
    assert not entropy.requires_grad
    for mine, other in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation's result holds."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_the_whole_matrix_never_exists(entropy_gradient: bool) -> None:
    """2,000 targets, 4,000 words: only chunks of 64 rows, and the weight's own gradient, are ever made."""
    hidden = torch.randn(2000, 8, requires_grad=True)
    weight = torch.randn(4000, 8, requires_grad=True)
    targets = torch.randint(0, 4000, (2000,))
    with LargestTensor() as largest:
        logprobs, entropy = chunked_logprobs(
            hidden, weight, targets, chunk_tokens=64, entropy_gradient=entropy_gradient
        )
        (logprobs + entropy).sum().backward()
    assert largest.elements <= 64 * 4000
    with LargestTensor() as whole:
        plain(hidden, weight, None, targets, 1.0)
    assert whole.elements == 2000 * 4000


def test_bfloat16_sums_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 32, generator=generator)
    weight = torch.randn(40, 32, generator=generator)
    targets = torch.randint(0, 40, (300,), generator=generator)
    low = [hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()]
    exact = [value.detach().double().requires_grad_() for value in low]
    got, _ = chunked_logprobs(low[0], low[1], targets, chunk_tokens=8)
    expected, _ = plain(exact[0], exact[1], None, targets, 1.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=0.2, rtol=0)
    got.mean().backward()
    expected.mean().backward()
    for mine, other in zip(low, exact, strict=True):
        assert mine.grad is not None and other.grad is not None
        assert ((mine.grad.double() - other.grad).norm() / other.grad.norm()).item() < 0.02


TRANSFORMS = {
    "plain": LogitsTransform(),
    "scale": LogitsTransform(scale=0.25),
    "cap": LogitsTransform(soft_cap=2.0),
    "both": LogitsTransform(scale=3.0, soft_cap=1.5),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_logits_that_are_scaled_or_capped(name: str, temperature: float) -> None:
    transform = TRANSFORMS[name]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(50, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (37,), generator=generator)
    upstream = torch.randn(37, dtype=torch.float64, generator=generator)
    logits = torch.nn.functional.linear(hidden, weight, bias) * transform.scale
    if transform.soft_cap is not None:
        logits = torch.tanh(logits / transform.soft_cap) * transform.soft_cap
    every = torch.log_softmax(logits / temperature, -1)
    expected = every.gather(1, targets[:, None])[:, 0]
    got, entropy = chunked_logprobs(
        hidden, weight, targets, bias=bias, transform=transform, temperature=temperature, chunk_tokens=5
    )
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(-1).detach(), atol=1e-12, rtol=0)
    inputs = (hidden, weight, bias)
    for mine, other in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_entropies_with_gradient(name: str) -> None:
    """Both outputs through finite differences, and against the plain formula with other gradients from above."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 6, dtype=torch.float64, generator=generator) for size in (7, 11))
    bias = torch.randn(11, dtype=torch.float64, generator=generator)
    inputs = tuple(value.requires_grad_() for value in (hidden, weight, bias))
    targets = torch.randint(0, 11, (7,), generator=generator)

    def both(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return chunked_logprobs(
            *values[:2],
            targets,
            bias=values[2],
            transform=TRANSFORMS[name],
            temperature=0.7,
            chunk_tokens=3,
            entropy_gradient=True,
        )

    assert torch.autograd.gradcheck(both, inputs)
    _, entropy = both(*inputs)
    logits = torch.nn.functional.linear(hidden, weight, bias) * TRANSFORMS[name].scale
    if (cap := TRANSFORMS[name].soft_cap) is not None:
        logits = torch.tanh(logits / cap) * cap
    every = torch.log_softmax(logits / 0.7, -1)
    expected = -(every.exp() * every).sum(-1)
    upstream = torch.randn(7, dtype=torch.float64, generator=generator)
    for mine, other in zip(
        torch.autograd.grad(entropy, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


def test_the_transform_is_read_from_the_configuration() -> None:
    assert LogitsTransform.of(Qwen3Config()) == PLAIN_LOGITS
    assert LogitsTransform.of(Gemma2Config()) == LogitsTransform(soft_cap=30.0)
    assert LogitsTransform.of(Gemma3TextConfig()) == PLAIN_LOGITS
    assert LogitsTransform.of(GraniteConfig(logits_scaling=8.0)) == LogitsTransform(scale=0.125)
    assert LogitsTransform.of(CohereConfig()) == LogitsTransform(scale=0.0625)


def test_a_transform_that_is_no_positive_number_is_refused() -> None:
    for value in (0.0, -30.0, "inv_sqrt_d_model"):
        with pytest.raises(ValueError, match=f"logit_scale={value!r}"):
            LogitsTransform.of(SimpleNamespace(logit_scale=value))
