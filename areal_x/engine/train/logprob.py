"""Log-probabilities of target tokens without the [tokens, vocabulary] matrix.

Axis letters: M target tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["chunked_logprobs"]


def chunked_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target under softmax((hidden @ weight.T + bias) / temperature), and the entropy.

    Logits exist for ``chunk_tokens`` rows at a time, forward and backward; the backward pass computes them again.
    Softmax and sums are in float32 (float64 for float64 input).

    Args:
        hidden: [M, H], the states that predict the targets.
        weight: [V, H], the output embedding; ``bias`` [V] is optional.
        targets: int64 [M].

    Returns:
        Log-probabilities [M], differentiable in hidden, weight and bias, and entropies [M], without gradient.
    """
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, weight, bias, targets, float(temperature), int(chunk_tokens))
    return logprobs, entropy


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float) -> torch.Tensor:
    """Scaled logits of one chunk, in the precision of the softmax."""
    logits = hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())
    logits = logits.to(_softmax_dtype(logits.dtype))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_targets = len(targets)
        dtype = _softmax_dtype(hidden.dtype)
        logprobs = torch.empty(num_targets, dtype=dtype, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        normalizers = torch.empty_like(logprobs)
        for start in range(0, num_targets, chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = _logits(hidden[chunk], weight, bias, temperature)
            normalizer = torch.logsumexp(logits, dim=-1)
            torch.sub(logits.gather(1, targets[chunk, None]).squeeze(1), normalizer, out=logprobs[chunk])
            probabilities = torch.exp(logits - normalizer[:, None])
            torch.sub(normalizer, torch.linalg.vecdot(probabilities, logits), out=entropy[chunk])
            normalizers[chunk] = normalizer
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: torch.Tensor, _grad_entropy: torch.Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Sums over chunks stay in the softmax's precision, so that a bfloat16 head does not lose small chunks.
        grad_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normalizers.dtype) if needs_bias else None
        for start in range(0, len(targets), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            scale = (grad_logprobs[chunk] / ctx.temperature)[:, None]
            grad_logits = _logits(hidden[chunk], weight, bias, ctx.temperature)
            grad_logits.sub_(normalizers[chunk, None]).exp_().mul_(-scale)
            grad_logits.scatter_add_(1, targets[chunk, None], scale)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            narrow = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                if narrow.dtype == grad_weight.dtype:
                    grad_weight.addmm_(narrow.t(), hidden[chunk])
                else:
                    grad_weight += narrow.t() @ hidden[chunk]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )
