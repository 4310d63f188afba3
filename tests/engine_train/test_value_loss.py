"""The critic's loss against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.engine.critic.value_loss import value_loss


def test_a_case_by_hand() -> None:
    # Moved by 0.5 towards its return 2, clipped at 0.2: error (1.2 - 2)^2, no gradient.
    # Moved by 0.1: plain, (1.1 - 2)^2, gradient 1.1 - 2.
    # Moved away by 0.5: the plain error is larger, (0.5 - 2)^2, gradient 0.5 - 2.
    values = torch.tensor([1.5, 1.1, 0.5], dtype=torch.float64, requires_grad=True)
    old, returns = torch.ones(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
    loss, sums = value_loss(values, returns, old, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 0.9**2 + 1.5**2))
    assert sums.tolist() == [loss.item(), 1.0]
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.0, -0.9, -1.5])
    plain, sums = value_loss(values, returns, old, None)
    assert plain.item() == pytest.approx(0.5 * (0.5**2 + 0.9**2 + 1.5**2)) and sums[1] == 0


@given(
    st.lists(st.tuples(*[st.floats(-3, 3, width=32)] * 3), min_size=1, max_size=20),
    st.one_of(st.none(), st.floats(0.01, 2)),
)
@settings(max_examples=60, deadline=None)
def test_equals_numpy(rows: list[tuple[float, float, float]], clip: float | None) -> None:
    values, returns, old = np.array(rows, dtype=np.float64).T
    expected, clipped = 0.0, 0
    for value, target, before in zip(values, returns, old, strict=True):
        error = (value - target) ** 2
        if clip is not None:
            other = (min(max(value, before - clip), before + clip) - target) ** 2
            clipped += other > error + 1e-12
            error = max(error, other)
        expected += error / 2
    loss, sums = value_loss(*(torch.from_numpy(array.copy()) for array in (values, returns, old)), clip)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert abs(sums[1].item() - clipped) <= (np.abs(values - old) > (clip or 0) - 1e-6).sum() * (clip is not None)
