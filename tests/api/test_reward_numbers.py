"""Which values are rewards, whatever kind of number they are."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from areal_x.api.reward_records import LARGEST_REWARD, RewardError, RewardResult, check_reward, finite_number


class Celsius(float):
    """A number with a class of its own."""


NUMBERS: list[tuple[Any, float]] = [
    (1.5, 1.5),
    (-0.0, 0.0),
    (3, 3.0),
    (Celsius(2.5), 2.5),
    (Fraction(1, 4), 0.25),
    (np.float32(0.5), 0.5),
    (np.float64(0.25), 0.25),
    (np.int64(-7), -7.0),
    (np.array(2.0), 2.0),
    (LARGEST_REWARD, LARGEST_REWARD),
    (-LARGEST_REWARD, -LARGEST_REWARD),
]
NO_NUMBERS: list[tuple[Any, str]] = [
    (float("nan"), "nan, expected a finite number"),
    (float("inf"), "inf, expected a finite number"),
    (-float("inf"), "-inf, expected a finite number"),
    (2 * LARGEST_REWARD, "expected a finite number"),
    (np.float64("nan"), "nan, expected a finite number"),
    (np.float32("inf"), "inf, expected a finite number"),
    (np.array(float("nan")), "expected a finite number"),
    (10**39, "a whole number too large"),
    (10**400, "a whole number too large"),
    (True, r"a bool \(True\), expected a number; return 1.0 or 0.0"),
    (np.bool_(False), "return 1.0 or 0.0"),
    (np.array(True), "return value.item"),
    (np.array([1.0]), "return value.item"),
    ("1.0", r"a str \('1.0'\), expected a number"),
    (Decimal(1), r"return float\(value\)"),
    (1j, "a complex"),
    ([1.0], "a list"),
]


@pytest.mark.parametrize(("value", "expected"), NUMBERS)
def test_a_number_of_any_kind_is_a_float(value: Any, expected: float) -> None:
    found = finite_number(value)
    assert type(found) is float and found == expected
    returned = [
        check_reward(RewardResult(value, {"part": value}), "reward", None),
        check_reward({"reward": value, "part": value}, "reward", None),
        check_reward(RewardResult(None, {"part": value}, step_rewards=[value]), "reward", None),
    ]
    for result in returned:
        assert result is not None and type(result.value) is float and result.value == expected
        assert type(result.parts["part"]) is float and result.parts == {"part": expected}
    alone = check_reward(value, "reward", None)
    assert alone is not None and type(alone.value) is float and alone.value == expected


@pytest.mark.parametrize(("value", "message"), NO_NUMBERS)
def test_what_is_no_number_is_named_with_its_place(value: Any, message: str) -> None:
    assert finite_number(value) is None
    places = {
        "the reward function returned under 'reward'": {"reward": value},
        "RewardResult.value is": RewardResult(value),
        r"RewardResult.parts\['part'\] is": RewardResult(1.0, {"part": value}),
        r"RewardResult.step_rewards\[1\] is": RewardResult(1.0, step_rewards=[1.0, value]),
    }
    for place, returned in places.items():
        with pytest.raises(RewardError, match=f"{place} .*{message}"):
            check_reward(returned, "reward", None)


@pytest.mark.parametrize(("name", "given"), [("parts", None), ("parts", [1.0]), ("metadata", "text")])
def test_a_result_whose_parts_are_no_dict_is_an_error(name: str, given: Any) -> None:
    with pytest.raises(RewardError, match=f"RewardResult.{name} is a {type(given).__name__}, expected a dict"):
        check_reward(RewardResult(1.0, **{name: given}), "reward", None)


def test_a_result_without_a_value_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"RewardResult\.value is a NoneType"):
        check_reward(RewardResult(None, {"part": 1.0}), "reward", 3)


def test_names_of_parts_become_text() -> None:
    result = check_reward(RewardResult(1, {1: 2}), "reward", None)  # type: ignore[dict-item]
    assert result is not None and result.parts == {"1": 2.0}
