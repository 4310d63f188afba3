"""slime's graders with exactly its verdicts: what was seen of them, step by step of their normal forms."""

from __future__ import annotations

from typing import Any

import pytest

from areal_x.reward import get_reward_fn
from areal_x.reward.math.bounded_child import Limits
from areal_x.reward.math.slime_grader import grade_strings
from areal_x.reward.math.slime_strings import boxed_content, dapo_form, hendrycks_form, split_elements, symbolic_form

MATH = get_reward_fn("math", compat="slime")
DEEPSCALER = get_reward_fn("deepscaler", compat="slime")
DAPO = get_reward_fn("dapo", compat="slime")

OBSERVED = [
    (r"\frac12", "1/2", True),
    ("0.5", "1/2", True),
    ("0.25", "1/4", True),
    ("2/4", "1/2", False),
    ("1,000", "1000", True),
    ("[1,2]", "(1,2)", False),
    ("(1,2)", "(1, 2)", True),
    ("(2,1)", "(1,2)", False),
    (r"10\%", "10", True),
    ("x=5", "5", True),
    ("xyz=5", "5", False),
    ("5 cm", "5", True),
    ("2+3", "5", False),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    ("(x+1)^2", "x^2+2x+1", True),
    ("x*y*z", "z*y*x", False),
    ("2^{10}", "1024", False),
    ("2^10", "1024", False),
    ("3 1/2", "7/2", True),
    ("1e3", "1000", True),
    (r"\text{A}", "A", True),
    ("Tuesday", "tuesday", True),
    ("", " ", True),
    ("", "5", False),
    (r"90^\circ", "90", True),
    (r"\$5", "5", True),
    ("2 million", "2*10^6", True),
    (r"\text{ a}\text{ b}", "a", False),
    (r"\frac", r"\frac", True),
    ("(1, x+x)", "(1,2x)", True),
]


@pytest.mark.parametrize(("given", "gold", "right"), OBSERVED)
def test_math_gives_slimes_verdict(given: str, gold: str, right: bool) -> None:
    value = MATH(completions=f"so \\boxed{{{given}}}", label=gold)
    assert value == int(right) and type(value) is int
    assert grade_strings(given, gold, Limits()) is right


@pytest.mark.parametrize(
    ("completion", "label", "value"),
    [
        ("5", "5", 0),
        (r"\fbox{5}", "5", 0),
        (r"\boxed 5", "5", 0),
        (r"\boxed{5} \boxed{", "5", 0),
        (r"\boxed{4} \boxed{5}", "5", 1),
        (r"\boxed{5}", r"\boxed{5}", 1),
        (r"\boxed{5}", r"\boxed 5", 0),
        (r"\boxed{0}", 0, 0),
        (r"\boxed{0}", "0", 1),
        (r"\boxed{5}", "", 0),
        (r"\boxed{5}", None, 0),
        (r"\boxed{5}", 5.0, 1),
        (r"<think> \boxed{5}", "5", 1),
    ],
)
def test_math_finds_what_slime_finds(completion: str, label: Any, value: int) -> None:
    assert MATH(completions=completion, label=label) == value


@pytest.mark.parametrize(
    ("completion", "label", "value"),
    [
        (r"\boxed{5}", "5", 0),
        (r"a</think>\boxed{5}", "5", 1),
        (r"a</think>\boxed{4}</think>\boxed{5}", "5", 1),
        (r"\boxed{5}</think>", "5", 0),
        (r"###Response \boxed{5}", "5", 1),
        (r"###Response \boxed{4} ###Response \boxed{5}", "5", 0),
        (r"</think>\boxed{5}", 5.0, 1),
        (r"</think>\boxed{5.0}", 5.0, 1),
        (r"</think>\boxed{1}", True, 0),
        (r"</think>\boxed{0}", 0, 1),
        (r"</think>\boxed{5}", "", 0),
    ],
)
def test_deepscaler_gives_slimes_verdict(completion: str, label: Any, value: int) -> None:
    assert DEEPSCALER(completions=completion, label=label) == value


def test_deepscaler_refuses_the_labels_that_slime_refuses() -> None:
    for label in (None, ["5"]):
        with pytest.raises(TypeError, match="takes a label that is a text or a number"):
            DEEPSCALER(completions=r"</think>\boxed{5}", label=label)


@pytest.mark.parametrize(
    ("completion", "label", "acc", "pred"),
    [
        ("Answer: 42", "42", True, "42"),
        ("answer : 42", 42, True, "42"),
        ("Answer: 42.", "42", False, "42."),
        ("**Answer: 42**", "42", False, "42**"),
        ("Answer: 042", "42", False, "042"),
        ("Answer: 42.0", "42", False, "42.0"),
        ("Answer: 42", "42.7", True, "42"),
        (r"\boxed{42}", "42", False, "[INVALID]"),
        (r"Answer: \boxed{42}", "42", True, "42"),
        ("Answer: $x = 1,042$ dollars", "1042", True, "1042"),
        ("Answer: 42" + " " * 300, "42", False, "[INVALID]"),
        ("Answer: 41\nAnswer: 42", "42", True, "42"),
    ],
)
def test_dapo_gives_what_slime_returns(completion: str, label: Any, acc: bool, pred: str) -> None:
    assert DAPO(completions=completion, label=label) == {"score": 1.0 if acc else -1.0, "acc": acc, "pred": pred}


def test_dapo_raises_where_slime_raises() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        DAPO(completions="Answer: 42", label=r"\frac{1}{2}")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (r" \text{ab} ", "ab"),
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"\tfrac1{72}", r"\frac{1}{72}"),
        (r"\frac{1}2", r"\frac{1}2"),
        ("1/2", r"\frac{1}{2}"),
        ("01/2", "01/2"),
        ("0.5", r"\frac{1}{2}"),
        (".5", r"\frac{1}{2}"),
        ("ab=1", "1"),
        ("abc=1", "abc=1"),
        ("a=b=1", "a=b=1"),
        (r"\sqrt3+\sqrt{2}", r"\sqrt{3}+\sqrt{2}"),
        (r"5\text{ cm}", "5"),
        (r"5\text{ a}\text{ b}", r"5\text{ a}\text{ b}"),
        (r"3\sqrt", r"3\sqrt"),
        (r"\frac1\frac", r"\frac1\frac"),
        (r"\left(1\right)", "(1)"),
        (r"90^{\circ}", "90"),
        ("", ""),
    ],
)
def test_hendrycks_form(text: str, form: str) -> None:
    assert hendrycks_form(text) == form


def test_other_forms() -> None:
    assert hendrycks_form(None) is None
    assert [symbolic_form(text, str) for text in ("3 1/2", "- 5", "{7}", "1,000", "5 feet^2", "A or B", "1e3")] == [
        "3+1/2",
        "-5",
        "7",
        "1000",
        "5",
        "a,b",
        "1000",
    ]
    assert split_elements("(1,2]") == ["1", "2"] and split_elements("((1),2)") == ["((1),2)"] and not split_elements("")
    assert [boxed_content(text) for text in (r"\boxed{a{b}}c", r"\boxed {a}", "a", r"\boxed{a")] == [
        "a{b}",
        None,
        None,
        None,
    ]
    assert [dapo_form(text) for text in ("x = 5", r"\frac12", r"\sqrt2", r"\text{5}", "1,000", "$a$ b")] == [
        "5",
        r"\frac{1}{2}",
        r"\sqrt{2}",
        "5",
        "1000",
        "a",
    ]
