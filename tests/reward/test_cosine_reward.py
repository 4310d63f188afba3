"""Accuracy scaled by length."""

from __future__ import annotations

import inspect
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.errors import ConfigError
from areal_x.api.reward_api import RewardError
from areal_x.reward import get_reward_fn

HERE = f"{__file__}:"


def accuracy(completions: str, level: float | None = 1.0) -> float | None:
    return level


def as_text(completions: str) -> Any:
    return "right"


async def awaited(completions: str) -> float:
    return 1.0


def reward_of(**options: Any) -> Any:
    options = {"maximum": 100, "accuracy": {"fn": f"{HERE}accuracy"}, **options}
    return pickle.loads(pickle.dumps(get_reward_fn("cosine", **options)))


@pytest.mark.parametrize(
    ("level", "length", "value"),
    [
        (1.0, 0, 1.0),
        (1.0, 50, 0.75),
        (1.0, 25, 0.75 + 0.25 * math.sqrt(0.5)),
        (1.0, 100, 0.5),
        (1.0, 900, 0.5),
        (0.0, 0, -1.0),
        (0.0, 50, -0.75),
        (0.0, 100, -0.5),
        (0.5, 0, 1.0),
        (0.49, 0, -1.0),
    ],
)
def test_the_curve(level: float, length: int, value: float) -> None:
    result = reward_of()(completions="", completion_ids=[1] * length, level=level)
    assert result.value == pytest.approx(value)
    assert result.parts == {"accuracy": level, "length": length}


@given(st.integers(0, 200), st.integers(0, 200))
def test_short_is_good_when_right_and_bad_when_wrong(left: int, right: int) -> None:
    short, long = sorted((left, right))
    reward = get_reward_fn("cosine", maximum=150, unit="characters", accuracy={"fn": f"{HERE}accuracy"})

    def value(length: int, level: float) -> float:
        return float(reward(completions="x" * length, level=level).value)

    assert 1.0 >= value(short, 1.0) >= value(long, 1.0) >= 0.5
    assert -1.0 <= value(short, 0.0) <= value(long, 0.0) <= -0.5


def test_options() -> None:
    reward = reward_of(right=[2, 1], wrong=[0, 0], right_from=0.9, beyond=-10)
    assert reward(completions="", completion_ids=[], level=0.9).value == 2.0
    assert reward(completions="", completion_ids=[], level=0.8).value == 0.0
    late = reward(completions="", completion_ids=[1] * 101, level=1.0)
    assert late.value == -10.0 and late.metadata["reason"] == "overlong"
    assert reward_of()(completions="", completion_ids=[], level=None) is None


def test_the_accuracy_is_by_default_that_of_the_data_set() -> None:
    reward = get_reward_fn("cosine", dataset="openai/gsm8k", maximum=10, unit="characters")
    parameters = inspect.signature(reward).parameters
    assert {"completions", "completion_ids", "answer", "prompt"} <= set(parameters)
    assert parameters["answer"].default is inspect.Parameter.empty
    result = reward(completions="#### 72", answer="#### 72", prompt="")
    assert 0.5 < result.value < 1.0 and result.metadata["answer"] == "72"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maximum": 0}, "maximum=0"),
        ({"accuracy": "math"}, r"accuracy='math' .*is not a mapping"),
        ({"accuracy": None}, r"reward\.kwargs\.accuracy: no reward"),
        ({"accuracy": {"fn": "gsm8"}}, r"reward\.kwargs\.accuracy: .*did you mean 'gsm8k'"),
        ({"accuracy": {"fn": f"{HERE}awaited"}}, r"reward\.kwargs\.accuracy is asynchronous; .*reward\.rewards"),
        ({"right": 1.0}, r"right=1\.0 .*is not a pair"),
        ({"wrong": [1.0]}, "is not a pair"),
        ({"wrong": [1.0, "x"]}, "is not a finite number"),
        ({"beyond": math.nan}, "is not a finite number"),
        ({"unit": "lines"}, "unit='lines'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reward_of(**options)


def test_failures_are_no_numbers() -> None:
    with pytest.raises(RewardError, match=r"reward\.kwargs\.accuracy of reward 'cosine'"):
        reward_of(accuracy={"fn": f"{HERE}as_text"})(completions="", completion_ids=[])
    with pytest.raises(ValueError, match="completion_ids is None"):
        reward_of()(completions="")
