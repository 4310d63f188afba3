"""The made data set: right answers, and held-out problems that are never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.api.config import DataConfig
from areal_x.api.errors import ConfigError
from areal_x.rollout.arithmetic import arithmetic_items
from areal_x.rollout.dataset import load_dataset_items


def operands(row: dict[str, Any]) -> tuple[int, int]:
    first, second = row["prompt"].removesuffix("=").split("+")
    return int(first), int(second)


@settings(deadline=None, max_examples=30)
@given(
    digits=st.integers(1, 18),
    seed=st.integers(0, 2**63 - 1),
    reverse=st.booleans(),
    split=st.sampled_from(["train", "eval"]),
)
def test_rows_are_right(digits: int, seed: int, reverse: bool, split: str) -> None:
    rows = arithmetic_items(split, num_digits=digits, num_items=20, num_eval_items=2, seed=seed, reverse=reverse)
    assert len(rows) == (20 if split == "train" else 2)
    for row in rows:
        first, second = operands(row)
        assert len(str(first)) == len(str(second)) == digits
        assert row["answer"] == row["completion"] == (str(first + second)[::-1] if reverse else str(first + second))


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_held_out_problems_are_never_trained(digits: int) -> None:
    def pairs(split: str, seed: int) -> set[tuple[int, int]]:
        rows = arithmetic_items(split, num_digits=digits, seed=seed)
        found = {operands(row) for row in rows}
        assert len(found) == len(rows), "a problem stands twice"
        return {(min(pair), max(pair)) for pair in found}

    assert not pairs("train", 1) & pairs("eval", 2)


def test_all_two_digit_problems_are_on_one_side() -> None:
    train, held_out = arithmetic_items("train"), arithmetic_items("eval", num_eval_items=None)
    assert len(train) + len(held_out) == 8100
    assert 0.07 < len(held_out) / 8100 < 0.13


def test_seeds_choose_other_problems() -> None:
    assert arithmetic_items(num_items=50, seed=1) == arithmetic_items(num_items=50, seed=1)
    assert arithmetic_items(num_items=50, seed=1) != arithmetic_items(num_items=50, seed=2)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"num_digits": 0}, "num_digits=0: must be from 1 to 18"),
        ({"num_digits": 2.5}, "num_digits=2.5"),
        ({"num_digits": 1, "num_items": 101}, "num_items=101: there are only"),
        ({"num_items": 0}, "num_items=0: must be 1 or more"),
        ({"held_out_fraction": 1.0}, "held_out_fraction=1.0"),
        ({"num_digit": 3}, "data.kwargs.num_digit is not an option of arithmetic; did you mean 'num_digits'?"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset_items(DataConfig(path="arithmetic", kwargs=kwargs))
    assert expected in str(caught.value)


def test_a_function_of_a_users_own_makes_rows(tmp_path: Path) -> None:
    (tmp_path / "squares_of_mine.py").write_text(
        "def squares(split, count=3):\n"
        "    start = 0 if split == 'train' else 100\n"
        "    return ({'prompt': f'{n}^2=', 'answer': str(n * n)} for n in range(start, start + count))\n"
    )
    data = DataConfig(path=f"{tmp_path}/squares_of_mine.py:squares", kwargs={"count": 2})
    assert load_dataset_items(data).rows == [{"prompt": "0^2=", "answer": "0"}, {"prompt": "1^2=", "answer": "1"}]
    assert load_dataset_items(data, "eval").rows[0]["prompt"] == "100^2="
    assert load_dataset_items(data).name == "squares"
