"""RMS normalisation with its backward pass written out.

Models write it as six operations, which autograd doubles; on a CPU each of them walks the whole activation through
memory. One function with a backward pass of its own halves the time (measured: 1.0 against 2.9 ms, forward and
backward, 2,830 rows of 128, one thread).
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["FusedRMSNorm", "use_fused_norms"]

SAME_FORMULA = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Qwen3MoeRMSNorm")
"""Classes that compute weight * x / sqrt(mean(x^2) + variance_epsilon); others (Gemma's 1 + weight) are left alone."""


def use_fused_norms(model: torch.nn.Module) -> int:
    """Let the known RMS norms of a float32 model on a CPU compute in one function; returns how many were changed.

    Parameters, their names and saved files stay as they are.
    """
    changed = 0
    for module in model.modules():
        if type(module).__name__ in SAME_FORMULA and hasattr(module, "variance_epsilon"):
            weight = module.weight
            if isinstance(weight, torch.Tensor) and weight.device.type == "cpu" and weight.dtype == torch.float32:
                module.__class__ = FusedRMSNorm
                changed += 1
    return changed


class FusedRMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019)."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _RMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon)
        return output


class _RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        mean_square = torch.linalg.vecdot(values, values).div_(values.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(values, weight, scale)
        return (values * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        values, weight, scale = ctx.saved_tensors
        normalized = values * scale
        grad_weight = (grad * normalized).flatten(0, -2).sum(0)
        grad_values = grad * weight
        projection = torch.linalg.vecdot(grad_values, normalized).div_(values.shape[-1]).unsqueeze(-1)
        grad_values.sub_(normalized.mul_(projection)).mul_(scale)
        return grad_values, grad_weight, None
