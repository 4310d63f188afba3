"""Verdicts of the gsm8k reward, and that no text of a model keeps it busy."""

from __future__ import annotations

import json
import os
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.reward_api import RewardResult
from areal_x.reward.answers import after_thinking, last_boxed, last_marked, last_number, parse_number
from areal_x.reward.gsm8k import gsm8k
from areal_x.reward.latex_answers import refusal

GOLD = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips.\n#### 72"

RIGHT = [
    r"\boxed{72}",
    "#### 72",
    "so she sold 72",
    "so she sold 72.",
    "72.0",
    r"72\text{ clips}",
    r"\boxed{72\text{ clips}}",
    r"\boxed{72 clips}",
    r"\boxed{x = 72}",
    r"\boxed{70} no wait \boxed{72}",
    "#### 70\nno wait\n#### 72",
    "#### $72",
    r"\boxed{\$72}",
    "#### 72%",
    r"\boxed{72\%}",
    "**72**",
    "#### **72**",
    r"\boxed{\frac{144}{2}}",
    r"\boxed{144/2}",
    r"\boxed 72",
    r"\boxed{\boxed{72}}",
    "I get #### 70 here, but in a box \\boxed{72}",
    "<think> maybe 70 </think> 72",
    "<think>\\boxed{70}</think>\n#### 72",
    r"\boxed{8 \times 9}",
    r"\boxed{\sqrt{5184}}",
    "#### 7.2e1",
    "48+24=72",
    "٧٢",
    r"\boxed{72} and an unfinished \boxed{7",
]

WRONG = [
    "",
    "no number at all",
    "72 at first, finally 70",
    r"\boxed{72} no wait \boxed{70}",
    "1,072",
    "72.5",
    "-72",
    "#### -72",
    "<think> maybe 72",
    "<think> one </think> 70 <think> 72",
    "<think>72</think>",
    r"\boxed{70} is 72",
    "#### 70\nor 72",
    r"\boxed{}",
    r"\boxed{70 or 72}",
    r"\boxed{72, 73}",
    r"\boxed{9**9**9}",
    "7 2",
    "\x00\x00",
]


@pytest.mark.parametrize("completion", RIGHT)
def test_right_answers_in_every_usual_form_score_one(completion: str) -> None:
    assert gsm8k(completion, GOLD).value == 1.0


@pytest.mark.parametrize("completion", WRONG)
def test_wrong_missing_and_unfinished_answers_score_zero(completion: str) -> None:
    assert gsm8k(completion, GOLD).value == 0.0


@pytest.mark.parametrize(
    ("gold", "completion", "value"),
    [
        ("#### 1,072", "1072", 1.0),
        ("#### 1072", "$1,072.00", 1.0),
        ("#### 1072", "72", 0.0),
        ("#### 0", "0", 1.0),
        ("#### -5", r"\boxed{-5}", 1.0),
        ("#### 5", r"\boxed{-5}", 0.0),
        ("#### 0.1", "0.10", 1.0),
        ("#### 0.3333", "1/3", 0.0),
        ("72", "#### 72", 1.0),
        (r"\frac{3}{4}", r"\boxed{0.75}", 1.0),
        (r"2 \sqrt{221}", r"\boxed{2\sqrt{221}}", 1.0),
        (r"2 \sqrt{221}", r"\boxed{221}", 0.0),
        ("#### 12345678901234567890", "12345678901234567891", 0.0),
    ],
)
def test_golds_of_other_shapes(gold: str, completion: str, value: float) -> None:
    assert gsm8k(completion, gold).value == value


def test_a_number_as_answer_column_works_and_an_empty_one_is_an_error() -> None:
    assert gsm8k("72", 72).value == 1.0
    with pytest.raises(ValueError, match="answer column is empty"):
        gsm8k("72", " ")


def test_a_thought_that_the_prompt_began_has_to_end() -> None:
    assert gsm8k("maybe 72", GOLD, prompt="<|user|>How many?<|assistant|><think>\n").value == 0.0
    assert gsm8k("maybe 70</think>72", GOLD, prompt="<|user|>How many?<|assistant|><think>\n").value == 1.0
    assert after_thinking("a", "<think></think>") == "a"


NEVER_RETURNING = [
    r"9^{9^{9^{9}}}",
    "9**9**9",
    "10000000!",
    r"2^{10^9}",
    r"2^{1000000000}",
    r"\sum_{k=1}^{10^7} 1/k",
    r"\binom{10^7}{5*10^6}",
    r"\int_0^1 e^{-x^2} \sin(x^3) \log(1+x)",
    "(" * 2000 + "1" + ")" * 2000,
    "1" * 1_000_000,
    r"\frac{1" * 500 + "}{2}" * 500,
    "7**(2*10**7)",
    "((((9^{99})^{99})^{99})^{99})",
    r"\ln{(\log(\log(7)))^{200}}",
]


@pytest.mark.parametrize("gold", ["#### 72", r"\frac{3}{4}", r"2\sqrt{221}", "0.5"])
@pytest.mark.parametrize("answer", NEVER_RETURNING, ids=lambda text: text[:12])
def test_an_answer_that_would_never_return_is_a_counted_verdict(answer: str, gold: str) -> None:
    begin = time.process_time()
    result = gsm8k("\\boxed{" + answer + "}", gold, limit_value=-0.5)
    assert time.process_time() - begin < 1.0
    assert result.value == -0.5
    assert result.metadata["reason"] in {
        "too_long",
        "too_many_digits",
        "unsupported_operation",
        "large_power",
        "too_deep",
    }


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 5000,
        "\\boxed{1}" * 5000,
        "{" * 1_000_000,
        "9," * 500_000,
        "a" * 1_000_000,
        "####" * 250_000,
        "-" * 1_000_000,
    ],
    ids=["unclosed boxes", "boxes", "braces", "digits", "letters", "marks", "signs"],
)
def test_huge_texts_take_less_than_a_second(text: str) -> None:
    begin = time.process_time()
    result = gsm8k(text, GOLD)
    assert time.process_time() - begin < 1.0
    assert isinstance(result, RewardResult)


@given(st.fractions(min_value=-(10**12), max_value=10**12).filter(lambda x: x.denominator <= 10**12))
def test_a_fraction_is_read_exactly(value: Fraction) -> None:
    assert parse_number(str(value)) == value
    sign = "-" if value < 0 else ""
    assert parse_number(f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}") == value


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_an_integer_is_read_in_every_usual_form(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f"{value}.00", f"${value:,}", f"{value}%", f" {value}. ", f"x = {value}"):
        assert parse_number(text) == value
    assert gsm8k(f"so it is {value:,}.", f"#### {value}").value == 1.0
    assert gsm8k(f"so it is {value + 1}", f"#### {value}").value == 0.0


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert gsm8k(text, "#### 31415926535").value in (0.0, 1.0)
    last_boxed(text), last_marked(text), last_number(text), refusal(text)


def test_the_last_number_is_whole_when_it_crosses_the_search_window() -> None:
    for tail in range(240, 270):
        assert last_number("x 1234567890 " + "a" * tail) == "1234567890"


def test_a_plain_number_never_loads_math_verify(tmp_path: object) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from areal_x.reward import get_reward_fn; "
        "assert get_reward_fn('gsm8k')(completions='#### 72', answer='#### 72').value == 1.0; "
        "assert 'math_verify' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif("AREAL_X_GSM8K" not in os.environ, reason="AREAL_X_GSM8K names no GSM8K data")
def test_every_gold_of_gsm8k_agrees_with_itself() -> None:
    root = os.environ["AREAL_X_GSM8K"]
    path = root if os.path.isfile(root) else os.path.join(root, "test.jsonl")
    with open(path, encoding="utf-8") as file:
        answers = [json.loads(line)["answer"] for line in file]
    assert len(answers) > 100
    for answer in answers:
        final = answer.rsplit("####", 1)[1].strip()
        number = parse_number(final)
        assert number is not None
        for completion in (answer, f"The answer is {final}.", f"\\boxed{{{final}}}", f"#### {number}"):
            assert gsm8k(completion, answer).value == 1.0
        assert gsm8k(f"#### {number + 1}", answer).value == 0.0
