"""What is no number says what to return instead."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from areal_x.api.reward_records import RewardError, RewardResult, check_reward


@pytest.mark.parametrize(
    ("returned", "end"),
    [
        (torch.tensor(0.5), "expected a number; return value.item()"),
        (torch.tensor([0.5]), "expected a number; return value.item()"),
        (np.array([0.5]), "expected a number; return value.item()"),
        ({"reward": torch.tensor(0.5)}, "expected a number; return value.item()"),
        (torch.tensor([0.5, 1.0]), "expected a number"),
        (Decimal("0.5"), "expected a number; return float(value)"),
        (RewardResult(Decimal("0.5")), "expected a number; return float(value)"),  # type: ignore[arg-type]
        (True, "expected a number; return 1.0 or 0.0"),
        ({"reward": None}, "expected a number; return None itself where the reward does not apply"),
        ("0.5", "expected a number"),
        (np.str_("0.5"), "expected a number"),
    ],
)
def test_what_is_no_number_says_what_to_return(returned: Any, end: str) -> None:
    with pytest.raises(RewardError) as error:
        check_reward(returned, "reward", None)
    assert str(error.value).endswith(end)
