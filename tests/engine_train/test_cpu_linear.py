"""oneDNN layers compute what nn.Linear computes."""

from __future__ import annotations

import pytest
import torch

from areal_x.engine.cpu_linear import OneDnnLinear, matmul_nt, use_onednn_linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (40, 24), (1, 3)])
def test_equals_linear_forward_and_backward(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(inputs, outputs, bias=bias)
    swapped = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=bias))
    swapped[0].load_state_dict(plain.state_dict())
    assert use_onednn_linear(swapped) == 1 and type(swapped[0]) is OneDnnLinear
    assert list(swapped.state_dict()) == [f"0.{name}" for name in plain.state_dict()]
    values = torch.randn(2, 33, inputs, requires_grad=True)
    twin = values.detach().clone().requires_grad_()
    upstream = torch.randn(2, 33, outputs)
    plain(values).backward(upstream)
    swapped(twin).backward(upstream)
    torch.testing.assert_close(swapped(twin), plain(values), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(twin.grad, values.grad, atol=1e-5, rtol=1e-5)
    for mine, other in zip(swapped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-5)


def test_other_types_are_left_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4).bfloat16(), torch.nn.Linear(4, 4).double())
    assert use_onednn_linear(model) == 0


def test_matmul_takes_any_strides() -> None:
    left, right = torch.randn(7, 5).t(), torch.randn(7, 9).t()
    torch.testing.assert_close(matmul_nt(left, right), left @ right.t(), atol=1e-5, rtol=1e-5)
    assert OneDnnLinear(3, 2)(torch.zeros(0, 3)).shape == (0, 2)
