"""An answer that names the gold among others, or denies it, earns nothing; what only looks like it keeps its reward."""

from __future__ import annotations

import pytest

from areal_x.reward import get_reward_fn
from areal_x.reward.hedges import denies, digits_apart, names_several

_MATH = ("math", "deepscaler", "dapo", "geometry3k")
_DENIALS = (r"\neq 72", r"\ne 72", r"\le 72", r"\geq 72", "< 72", r"\text{not }72", r"72 \text{ is wrong}, 73")


def value(name: str, completion: str, gold: str) -> float:
    return float(get_reward_fn(name)(completions=completion, answer=gold).value)


@pytest.mark.parametrize("name", [*_MATH, "gsm8k", "clevr_count_70k"])
@pytest.mark.parametrize("answer", [*_DENIALS, r"72 \text{ or } 73", "72|73", r"72\\73"])
def test_denials_and_several_values_in_a_box_earn_nothing(name: str, answer: str) -> None:
    assert value(name, rf"\boxed{{{answer}}}", "72") <= 0.0


@pytest.mark.parametrize("name", _MATH)
@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        *((r"x \le 5", r"x \leq 5"), (r"72 \text{ cm}", "72"), ("|-72|", "72"), (r"x=72", "72")),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\text{not possible}", r"\text{not possible}"),
    ],
)
def test_signs_that_the_gold_has_too_keep_their_reward(name: str, answer: str, gold: str) -> None:
    assert value(name, rf"\boxed{{{answer}}}", gold) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        *("The answer is 11 or 12 or 13", "The answer is 11; 12", "The answer is 11 | 12", "The answer is 11, 12, 13."),
        *("The answer is 11 clips or 12 clips", "The answer is 11, and 12", "The answer is 11 and 12."),
        *(
            r"The answer is 11 \lor 12.",
            r"The answer is 11\\12",
            r"The answer is 11\text{ or }12",
            "The answer is 11 & 12",
        ),
        *("The answer is not 11.", "The answer isn't 11", "The answer cannot be **11**.", r"The answer is $\neq 11$"),
        *("It is not 11", "it isn't $11", "The answer is not 11 but 12."),
    ],
)
def test_hedges_without_a_box_earn_nothing(text: str) -> None:
    assert value("math", text, "11") == 0.0


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        *(("The answer is 11, which is prime.", "11"), ("The answer is 11 and 2 of them are red.", "11")),
        *(("The answer is 11, 12, 13.", "11, 12, 13"), ("The answer is not 11 but 12.", "12")),
        *(("The answer is 1,072.", "1072"), ("So the answer is 11 or, equivalently, 22/2", "11")),
        ("I did not expect it, but it is 11", "11"),
    ],
)
def test_remarks_and_lists_without_a_box_keep_their_reward(text: str, gold: str) -> None:
    assert value("math", text, gold) == 1.0


@pytest.mark.parametrize("answer", [r"\boxed{1,2}", "Answer: 1,2", "Answer: 1 2", r"\boxed{1 2}"])
def test_dapo_joins_no_digits(answer: str) -> None:
    assert value("dapo", answer, "12") == -1.0
    assert get_reward_fn("dapo", compat="slime")(completions="Answer: 1,2", answer="12")["score"] == 1.0


@pytest.mark.parametrize("answer", ["1,200", "1 200", "1{,}200", r"1,\!200", "1200 square inches", "1 200 dollars"])
def test_dapo_knows_digit_groups(answer: str) -> None:
    assert value("dapo", f"Answer: {answer}", "1200") == 1.0


@pytest.mark.parametrize(
    "answer",
    [r"\boxed{\(11\)}", r"\boxed{$$11$$}", r"\boxed{x_1 = 11}", "#### Total: 11", r"\boxed{|-11|}", "#### 11</answer>"],
)
def test_gsm8k_takes_one_value_however_it_is_set(answer: str) -> None:
    assert value("gsm8k", answer, "#### 11") == 1.0


@pytest.mark.parametrize("answer", ["11&12", "11~12", "11;12", "11...12", r"11\text{ or 12}", "11、12", r"11\%12"])
def test_gsm8k_takes_no_second_value(answer: str) -> None:
    assert value("gsm8k", rf"\boxed{{{answer}}}", "#### 11") == 0.0


def test_the_signs() -> None:
    assert denies("x < 5", "5") and not denies("x < 5", "y > 5") and not denies("5</answer><|im_end|>", "5")
    assert names_several("5|6", "5") and not names_several("|5|", "5") and not names_several("5;6", "5;6")
    assert digits_apart("1, 2") and not digits_apart("1,234,567") and not digits_apart("12")
