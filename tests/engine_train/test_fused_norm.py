"""The written-out RMS norm equals autograd through the models' own formula."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from areal_x.engine.train.fused_norm import FusedRMSNorm, use_fused_norms


@pytest.mark.parametrize("shape", [(1, 50, 32), (1, 50, 4, 16), (1, 1, 8)])
def test_equals_the_models_own_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    own, fused = Qwen3RMSNorm(shape[-1], eps=1e-6), torch.nn.ModuleList([Qwen3RMSNorm(shape[-1], eps=1e-6)])
    with torch.no_grad():
        own.weight.normal_()
    fused[0].load_state_dict(own.state_dict())
    assert use_fused_norms(fused) == 1 and type(fused[0]) is FusedRMSNorm
    first = torch.randn(shape).requires_grad_()
    second = first.detach().clone().requires_grad_()
    upstream = torch.randn(shape)
    expected, got = own(first), fused[0](second)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    expected.backward(upstream)
    got.backward(upstream)
    torch.testing.assert_close(second.grad, first.grad, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(fused[0].weight.grad, own.weight.grad, atol=1e-5, rtol=1e-5)


def test_a_norm_at_zero_is_finite() -> None:
    norm = torch.nn.ModuleList([Qwen3RMSNorm(8)])
    use_fused_norms(norm)
    values = torch.zeros(3, 8, requires_grad=True)
    norm[0](values).sum().backward()
    assert values.grad is not None and torch.isfinite(values.grad).all()
