"""Verdicts of the math reward, where it finds answers, and that no text keeps it busy."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.api.errors import ConfigError
from areal_x.api.reward_api import RewardResult
from areal_x.reward import get_reward_fn
from areal_x.reward.math.finding import find_answer, find_gold
from areal_x.reward.math.grading import refusal

MATH = get_reward_fn("math")


@pytest.mark.parametrize(
    ("completion", "gold", "value"),
    [
        (r"\boxed{72}", 72, 1.0),
        (r"\boxed{72}", "#### 72", 1.0),
        (r"\boxed{72}", r"so it is \boxed{72}.", 1.0),
        (r"\boxed{70} no wait \boxed{72}", "72", 1.0),
        (r"\boxed{70}. I made a mistake, and it is \boxed{72}", "72", 1.0),
        (r"\boxed{72} no wait \boxed{70}", "72", 0.0),
        (r"\boxed{1} and \boxed{2}", "1,2", 1.0),
        (r"$$\boxed{(2, 2)} \quad \text{and} \quad \boxed{(6, 2)}$$", "$(2,2), (6,2)$", 1.0),
        (r"\boxed{1} or \boxed{2}", "2", 0.0),
        (r"\boxed{72} and an open \boxed{7", "72", 1.0),
        (r"\boxed{\boxed{72}}", "72", 1.0),
        (r"\boxed{72.}", "72", 1.0),
        (r"\boxed{20\%}", "20", 1.0),
        ("#### 72", "72", 1.0),
        ("#### **72**", "72", 1.0),
        ("The answer is **72**.", "72", 1.0),
        ("The answer follows from all that was said before and found out above: we get 72", "72", 1.0),
        ("48 + 24 = 72", "72", 1.0),
        ("in total she has 72 clips.", "72", 1.0),
        ("it is $2\\sqrt{3}$", r"2\sqrt{3}", 1.0),
        (r"\boxed{2}", r"2\sqrt{3}", 0.0),
        (r"\boxed{\sqrt{12}}", r"$2\sqrt{3}$", 1.0),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
        (r"\boxed{1.22}", "1,22", 1.0),
        ("<think>\\boxed{70}</think> \\boxed{72}", "72", 1.0),
        ("<think> \\boxed{72}", "72", 0.0),
        ("", "72", 0.0),
        ("no number", "72", 0.0),
        ("\x00 \u202e 72", "72", 1.0),
    ],
)
def test_verdicts(completion: str, gold: object, value: float) -> None:
    assert MATH(completions=completion, answer=gold).value == value


def test_the_gold_may_be_in_another_column() -> None:
    assert MATH(completions="72", label="72").value == 1.0
    assert get_reward_fn("math", answer_key="solution")(completions="72", solution="72", answer="1").value == 1.0
    with pytest.raises(ValueError, match="needs a gold answer"):
        MATH(completions="72")
    with pytest.raises(ValueError, match="gold answer is empty"):
        MATH(completions="72", answer=" ")


def test_a_thought_that_the_prompt_began_has_to_end() -> None:
    assert MATH(completions="maybe 72", answer="72", prompt="How many?<think>\n").value == 0.0
    assert MATH(completions="maybe 70</think>72", answer="72", prompt="How many?<think>\n").value == 1.0


def test_metadata_says_what_was_found_and_why_not() -> None:
    assert MATH(completions=r"\boxed{71}", answer="72").metadata == {"answer": "71", "source": "boxed"}
    assert MATH(completions="", answer="72").metadata == {"reason": "no_answer"}
    assert MATH(completions="<think>", answer="72").metadata == {"reason": "unfinished_think"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compat": "verl"}, "compat='verl' of reward 'math' is not one of"),
        ({"time_limit": 0}, "time_limit=0"),
        ({"memory_limit_mb": 1}, "memory_limit_mb=1"),
        ({"limit_value": float("nan")}, "limit_value=nan"),
        ({"answer_key": "a b"}, "answer_key='a b'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_reward_fn("math", **options)


NEVER_RETURNING = [
    r"9^{9^{9^{9}}}",
    "9**9**9",
    "10000000!",
    r"2^{10^9}",
    r"\sum_{k=1}^{10^7} 1/k",
    r"\binom{10^7}{5*10^6}",
    r"\int_0^1 e^{-x^2} \sin(x^3) \log(1+x)",
    "(" * 2000 + "1" + ")" * 2000,
    "(" * 35 + "1" + ")" * 35,
    "1" * 1_000_000,
    r"\frac{1" * 500 + "}{2}" * 500,
    "7**(2*10**7)",
    "((((9^{99})^{99})^{99})^{99})",
    r"\ln{(\log(\log(7)))^{200}}",
]


@pytest.mark.parametrize("answer", NEVER_RETURNING, ids=lambda text: text[:12])
@pytest.mark.parametrize("name", ["math", "deepscaler", "geometry3k", "dapo"])
def test_an_answer_that_would_never_return_is_a_verdict(name: str, answer: str) -> None:
    reward = get_reward_fn(name, time_limit=0.1, limit_value=-0.5)
    begin = time.monotonic()
    result = reward(completions="\\boxed{" + answer + "}", answer=r"x+\frac{1}{3}")
    assert time.monotonic() - begin < 30.0
    # Math-Verify does not read all of them: then the answer is wrong, and the time is short, too.
    reason = result.metadata.get("reason", "")
    assert reason.startswith("math_") if result.value == -0.5 else result.value in (0.0, -1.0)


@pytest.mark.parametrize("answer", ["9**9**9", "7**(2*10**7)", "2**(10**9)"])
@pytest.mark.parametrize("compat", ["areal", "slime"])
def test_other_libraries_verdicts_are_bounded_too(compat: str, answer: str) -> None:
    reward = get_reward_fn("math", compat=compat, time_limit=0.1, limit_value=-0.5)
    text = f"\\boxed{{{answer}}}" if compat == "slime" else f"the answer is {answer}"
    begin = time.monotonic()
    result = reward(completions=text, answer="0.33")
    assert time.monotonic() - begin < 30.0
    assert isinstance(result, RewardResult) and (result.value, result.metadata["reason"]) == (-0.5, "math_time_limit")


def test_a_limit_holds_in_a_thread() -> None:
    results = []

    def work() -> None:
        results.append(get_reward_fn("math", time_limit=0.1)(completions=r"\boxed{2^{10^9}}", answer=r"\frac12"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert results[0].metadata["reason"] == "math_time_limit"


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 5000,
        "\\boxed{1}" * 5000,
        "{" * 10**6,
        "9," * 500_000,
        "a" * 10**6,
        "answer " * 100_000,
        "$" * 10**6,
    ],
    ids=["open boxes", "boxes", "braces", "digits", "letters", "answers", "dollars"],
)
def test_huge_texts_take_little_time(text: str) -> None:
    begin = time.process_time()
    assert get_reward_fn("math", time_limit=0.5)(completions=text, answer="72").value == 0.0
    assert time.process_time() - begin < 5.0


def test_refusals() -> None:
    assert refusal(r"\frac{3}{4}") is None and refusal("12345!") is None and refusal("2^{100}") is None
    assert refusal("1" * 600) == "math_too_many_digits"
    assert refusal("1 " * 600) == "math_too_long"
    assert refusal("(" * 41) == "math_too_deep"
    assert refusal("9^{9^{9^{9}}}") == refusal("1000000!") == "math_large_power"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("\\boxed{}answer is 17.$#\n,()")), max_size=80))
def test_any_text_is_searched(text: str) -> None:
    found = find_answer(text)
    assert found is None or found.source in ("boxed", "marked", "answer", "end")
    if text.strip():
        try:
            find_gold(text)
        except ValueError as error:
            assert "gold" in str(error)
