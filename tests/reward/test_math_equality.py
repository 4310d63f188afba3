"""The math reward's verdicts are Math-Verify's: where it tells them itself, and on all kinds behind a long text."""

from __future__ import annotations

import functools
import itertools
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.reward import get_reward_fn
from areal_x.reward.math.exact import compare
from areal_x.reward.math.symbolic import normalized

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from math_answers import KINDS, chain_of_thought, pairs

COT = chain_of_thought(3000)


@functools.cache
def parsed(text: str) -> list[object]:
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return list(parse(text, parsing_timeout=None))


@functools.cache
def math_verify(gold: str, answer: str) -> bool:
    """Math-Verify's own verdict on two boxes."""
    from math_verify import verify

    boxes = parsed(f"\\boxed{{{gold}}}"), parsed(f"\\boxed{{{answer}}}")
    return bool(verify(*boxes, float_rounding=6, timeout_seconds=None))


def assert_told_as_by_math_verify(gold: str, answer: str) -> None:
    verdict = compare(normalized(gold), normalized(answer))
    assert verdict is None or verdict == math_verify(gold, answer), (gold, answer)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_without_sympy_is_what_math_verify_says(kind: str) -> None:
    others = [text for name, texts in KINDS.items() for text in texts if name != kind]
    for number, gold in enumerate(KINDS[kind]):
        for answer in (*KINDS[kind], *others[number % 7 :: 7]):
            assert_told_as_by_math_verify(gold, answer)


@pytest.mark.soak
def test_all_that_is_told_without_sympy_is_what_math_verify_says() -> None:
    everything = [text for texts in KINDS.values() for text in texts]
    for gold, answer in itertools.product(everything, everything):
        assert_told_as_by_math_verify(gold, answer)


def test_most_plain_pairs_are_told_without_sympy() -> None:
    plain = [*KINDS["integer"], *KINDS["fraction"], *KINDS["decimal"], *KINDS["root"], *KINDS["unit"]]
    told = [compare(normalized(gold), normalized(answer)) is not None for gold in plain for answer in plain]
    assert sum(told) > 0.8 * len(told)


def test_every_kind_gets_math_verifys_verdict_behind_a_chain_of_thought() -> None:
    reward = get_reward_fn("math")
    cases = [pair for number, pair in enumerate(pairs()) if number % 11 == 0]
    assert len(cases) > 190
    wrong = [
        (gold, answer)
        for gold, answer in cases
        if reward(completions=f"{COT}So it is $\\boxed{{{answer}}}$.", answer=gold).value
        != float(bool(answer.strip()) and math_verify(gold, answer))
    ]
    assert wrong == []


@pytest.mark.soak
def test_every_pair_gets_math_verifys_verdict() -> None:
    reward = get_reward_fn("math")
    for gold, answer in pairs():
        value = reward(completions=f"{COT}\\boxed{{{answer}}}", answer=gold).value
        assert value == float(bool(answer.strip()) and math_verify(gold, answer)), (gold, answer)


ENDINGS = [
    "The answer is {}.",
    "The final answer is {}. I hope it is correct.",
    "answer: {}",
    "**Answer: {}**",
    "Answer ${}$",
    "The answer is \\({}\\).",
    "Therefore x = {}",
    "so we get {} clips.",
    "so we get {} percent",
    "so it is ${}$.",
    "so it is\n\\[{}\\]",
    "it is ${}$ and ${}$",
    "of which 3 + {}",
    "The answer is 5 and not {}",
    "they sold {}",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_without_a_box_math_verifys_own_search_gives_the_same(ending: str) -> None:
    from math_verify import verify

    reward = get_reward_fn("math")
    for answer in ("72", "-3", "1,072", "0.5", "7", r"\frac{3}{4}"):
        if "$" not in ending and "\\" not in ending and "\\" in answer:
            continue
        text = COT + ending.replace("{}", answer)
        for gold in ("72", "-3", "1072", "0.5", "3/4", "5", "75", "-7"):
            theirs = verify(parsed(gold), parsed(text), float_rounding=6, timeout_seconds=None)
            assert reward(completions=text, answer=gold).value == float(theirs), (text[-60:], gold)


numbers = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.integers(0, 10**9).map(lambda value: f"{value:,}"),
    st.decimals(-1000, 1000, places=3).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda pair: f"\\frac{{{pair[0]}}}{{{pair[1]}}}"),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.tuples(st.integers(2, 9), st.integers(1, 50)).map(lambda pair: f"{pair[0]}\\sqrt{{{pair[1]}}}"),
)


@settings(max_examples=150, deadline=None)
@given(numbers, numbers)
def test_numbers_compare_as_in_math_verify(gold: str, answer: str) -> None:
    for one, other in ((gold, answer), (gold, gold)):
        verdict = compare(normalized(one), normalized(other))
        assert verdict is None or verdict == math_verify(one, other)
