"""Linear layers through oneDNN on a CPU.

PyTorch sends float32 matrix products on x86 to MKL, which does not use the wide vector units of other makers'
processors: measured on an AMD EPYC with AVX-512, one thread, 2,830 rows by 128 by 384, MKL reaches 90 GFLOP/s and
oneDNN 200. oneDNN is part of PyTorch's own wheel. Results differ from MKL's in rounding only and repeat bitwise for
equal shapes.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["OneDnnLinear", "matmul_nt", "use_onednn_linear"]


def matmul_nt(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left @ right.T`` of two float32 matrices on the CPU, of any strides, through oneDNN."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return result


def use_onednn_linear(model: torch.nn.Module) -> int:
    """Let every plain ``nn.Linear`` of a float32 model on a CPU compute through oneDNN; returns how many were changed.

    Parameters, their names and saved files stay as they are. Does nothing on other devices, for other types, and where
    PyTorch comes without oneDNN.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    changed = 0
    for module in model.modules():
        if (
            type(module) is torch.nn.Linear
            and module.weight.device.type == "cpu"
            and module.weight.dtype == torch.float32
        ):
            module.__class__ = OneDnnLinear
            changed += 1
    return changed


class OneDnnLinear(torch.nn.Linear):
    """``nn.Linear`` whose products, forward and backward, run in oneDNN."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.dtype != torch.float32 or input.numel() == 0:
            return super().forward(input)
        output: torch.Tensor = _OneDnnLinearFunction.apply(input, self.weight, self.bias)
        return output


class _OneDnnLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(values, weight)
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        values, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_values = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_values = matmul_nt(rows, weight.t()).view(values.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = _grad_weight(rows, values.reshape(-1, values.shape[-1]))
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_values, grad_weight, grad_bias


def _grad_weight(grad: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``grad.T @ values``. oneDNN's entry copies a transposed left side, so the narrower one goes there."""
    if grad.shape[1] <= values.shape[1]:
        return matmul_nt(grad.t(), values.t())
    return matmul_nt(values.t(), grad.t()).t().contiguous()
