"""Log-probabilities of target tokens without the [tokens, vocabulary] matrix.

Axis letters: M target tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["PLAIN_LOGITS", "LogitsTransform", "chunked_logprobs"]


@dataclass(frozen=True, slots=True)
class LogitsTransform:
    """What a model does to its logits after the output layer: ``x -> scale * x``, then ``x -> cap * tanh(x / cap)``.

    Scale: Granite (``1 / logits_scaling``) and Cohere (``logit_scale``). Soft cap: Gemma (``final_logit_softcapping``).
    """

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitsTransform:
        """Read it from a model's configuration.

        Raises:
            ValueError: a value that is no number above 0; the message names it.
        """
        values: dict[str, float | None] = {}
        for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
            value = getattr(config, name, None)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"{name}={value!r}, where only a number above 0 is supported")
            values[name] = value
        scale = (values["logit_scale"] or 1.0) / (values["logits_scaling"] or 1.0)
        return cls(scale, values["final_logit_softcapping"])

    def apply_(self, logits: torch.Tensor) -> torch.Tensor:
        """Transform logits in place, and return them."""
        if self.soft_cap is None:
            return logits if self.scale == 1.0 else logits.mul_(self.scale)
        return logits.mul_(self.scale / self.soft_cap).tanh_().mul_(self.soft_cap)

    def slope(self, transformed: torch.Tensor) -> torch.Tensor | float:
        """Derivative at the logits that became ``transformed``."""
        if self.soft_cap is None:
            return self.scale
        return (transformed / self.soft_cap).square_().sub_(1.0).mul_(-self.scale)


PLAIN_LOGITS = LogitsTransform()
"""Of models that leave their logits as they are."""


def chunked_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    transform: LogitsTransform = PLAIN_LOGITS,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target under softmax(transform(hidden @ weight.T + bias) / temperature), and the entropy.

    Logits exist for ``chunk_tokens`` rows at a time, forward and backward; the backward pass computes them again.
    Softmax and sums are in float32 (float64 for float64 input).

    Args:
        hidden: [M, H], the states that predict the targets.
        weight: [V, H], the output embedding; ``bias`` [V] is optional.
        targets: int64 [M].
        transform: of the model's logits, before the temperature.
        entropy_gradient: whether entropies are differentiable, too; it costs one more chunk of logits in the backward
            pass.

    Returns:
        Log-probabilities [M], differentiable in hidden, weight and bias, and entropies [M].
    """
    settings = (transform, float(temperature), int(chunk_tokens), entropy_gradient)
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, weight, bias, targets, *settings)
    return logprobs, entropy


def _transformed(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transform: LogitsTransform
) -> torch.Tensor:
    """Logits of one chunk before the temperature, in the precision of the softmax."""
    logits = hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())
    return transform.apply_(logits.to(_softmax_dtype(logits.dtype)))


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
        transform: LogitsTransform,
        temperature: float,
        chunk_tokens: int,
        entropy_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_targets = len(targets)
        dtype = _softmax_dtype(hidden.dtype)
        logprobs = torch.empty(num_targets, dtype=dtype, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        largest = torch.empty(num_targets, 1, dtype=dtype, device=hidden.device)
        totals = torch.empty_like(largest)
        for start in range(0, num_targets, chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = _transformed(hidden[chunk], weight, bias, transform)
            if temperature != 1.0:
                logits.div_(temperature)
            torch.amax(logits, -1, keepdim=True, out=largest[chunk])
            exponentials = logits.sub_(largest[chunk]).exp()
            total = torch.sum(exponentials, -1, keepdim=True, out=totals[chunk]).squeeze(1)
            normalizer = total.log()
            torch.sub(logits.gather(1, targets[chunk, None]).squeeze(1), normalizer, out=logprobs[chunk])
            torch.sub(normalizer, torch.einsum("mv,mv->m", exponentials, logits).div_(total), out=entropy[chunk])
            del logits, exponentials
        ctx.save_for_backward(hidden, weight, bias, targets, largest, totals, entropy if entropy_gradient else None)
        ctx.transform, ctx.temperature, ctx.chunk_tokens = transform, temperature, chunk_tokens
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: torch.Tensor, grad_entropy: torch.Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, largest, totals, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Sums over chunks stay in the softmax's precision, so that a bfloat16 head does not lose small chunks.
        grad_weight = torch.zeros_like(weight, dtype=totals.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=totals.dtype) if needs_bias else None
        for start in range(0, len(targets), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            grad_logits = _grad_logits(
                _transformed(hidden[chunk], weight, bias, ctx.transform),
                largest[chunk],
                totals[chunk],
                targets[chunk, None],
                grad_logprobs[chunk, None],
                ctx.transform,
                ctx.temperature,
                None if entropy is None else (entropy[chunk, None], grad_entropy[chunk, None]),
            )
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
            None,
            None,
        )


def _grad_logits(
    logits: torch.Tensor,
    largest: torch.Tensor,
    totals: torch.Tensor,
    targets: torch.Tensor,
    grad: torch.Tensor,
    transform: LogitsTransform,
    temperature: float,
    entropy: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Gradient at the output layer's logits, all [rows, V or 1]; of the log-probability, with p the probabilities,
    grad * (onehot - p) / temperature * slope; of ``entropy`` H, which comes with its own gradient,
    -grad * p * (log p + H) / temperature * slope.

    Probabilities are exp(x - largest) / totals; to subtract the logarithm of the sum instead would round all of a row
    alike, by up to 1e-6. The result takes the place of ``logits``, which are transformed.
    """
    slope = transform.slope(logits)
    scale = grad / temperature
    if temperature != 1.0:
        logits.div_(temperature)
    logits.sub_(largest)
    if entropy is None:
        logits.exp_().mul_(-scale / totals)
    else:
        value, own_grad = entropy
        factors = logits.add(value - totals.log()).mul_(-own_grad / temperature).sub_(scale)
        logits.exp_().mul_(factors.div_(totals))
    logits.scatter_add_(1, targets, scale)
    return logits if isinstance(slope, float) and slope == 1.0 else logits.mul_(slope)
