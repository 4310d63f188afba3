"""Multiple choice: what counts as a statement of an answer, and slime's verdicts."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.errors import ConfigError
from areal_x.api.reward_api import AsyncRewardWrapper, close_default_pool
from areal_x.reward import get_reward_fn
from areal_x.reward.choice_answers import stated_choice

CITIES = ["London", "Paris", "Rome", "Bonn"]
RIGHT = r"""
The answer is: C|The answer is C|the answer is c.|Answer: C|ANSWER: C|Answer = C|Answer: (C)|answer is [C]
**Answer: C**|The correct answer is **C**.|\boxed{C}|\boxed{\text{C}}|\boxed{(C)}|\boxed{C. Rome}|\boxed{Rome}
\boxed{\text{Rome}}|C|(C)|C.|$C$|C. Rome|C) Rome|Rome|It depends.¶¶Rome.|The answer is Rome|The answer is Rome.
Answer: C. Rome|Option C is correct|C is the correct answer.|(C) is right|<answer>C</answer>
<answer>Rome</answer>|Answer:¶C|The answer is:¶¶**C**|The answer is A. Wait, the answer is C.|so I choose C
I would go with option (C).|My answer is option C: Rome|The best choice is C|答案是C|答案：C
因此选C。|故选（Ｃ）|正确答案为 C 项
The answer is C, because Rome is old|The final answer is: $\boxed{C}$|Final Answer: C|The answer is C, not D.
<think>A</think>The answer is C|The correct answer depends. The answer is C|The answer is not A. The answer is C
Answer: the correct option is C|The answer is 'C'|The answer is "C".|Answer: **C) Rome**
The answer is C.¶A and B are wrong|Therefore, (C).|So it must be C.|Hence C|\boxed{A} no, \boxed{C}
"""
WRONG = r"""
|because|The answer is D|not Rome|I considered Rome at first|The answer is C. No: the answer is D
The answer is not C|C or D|The answer is C or D|The answer is C and D|The answer is C/D|The answer is A, B, C
\boxed{C, D}|<think>The answer is C|Carbon|The answer is Carbon|answer: C-14 dating|The answer is C = 5
The answer is unclear|A. London¶B. Paris¶C. Rome|Is C correct?|The answer is C. Wait, the answer is not C.
the answer is a mystery|Rome Paris London Bonn|The answer is (A)|The answer is Romeo|The answer is C's opposite
vitamin C|London, Paris, Rome
"""


def rows(table: str) -> list[str]:
    return [cell.replace("¶", "\n") for line in table.strip("\n").splitlines() for cell in line.split("|")]


@pytest.mark.parametrize("completion", rows(RIGHT))
def test_statements_of_the_right_option(completion: str) -> None:
    assert get_reward_fn("gpqa")(completions=completion, answer="C", choices=CITIES).value == 1.0


@pytest.mark.parametrize("completion", rows(WRONG))
def test_no_credit_without_a_statement(completion: str) -> None:
    assert get_reward_fn("gpqa")(completions=completion, answer="C", choices=CITIES).value == 0.0


@pytest.mark.parametrize("before", rows(WRONG) + rows(RIGHT))
def test_the_last_statement_wins(before: str) -> None:
    text = f"{before}\n\nThe answer is: B\n\nThe answer is: C"
    unfinished = "<think>" in before and "</think>" not in before
    reward = get_reward_fn("gpqa")
    assert reward(completions=text, answer="C", choices=CITIES).value == float(not unfinished)
    assert reward(completions=text, answer="B", choices=CITIES).value == 0.0


@given(st.text(max_size=60), st.sampled_from("ABCD"))
def test_a_statement_at_the_end_decides_whatever_stands_before(before: str, letter: str) -> None:
    completion = f"{before}</think>\n\nFinal answer: ({letter})"
    reward = get_reward_fn("gpqa")
    assert reward(completions=completion, answer=letter, choices=CITIES).value == 1.0
    assert reward(completions=completion, answer="ABCD".index(letter), choices=CITIES).value == 1.0
    assert reward(completions=completion, answer="ABCD"[("ABCD".index(letter) + 1) % 4], choices=CITIES).value == 0.0


@given(st.text(alphabet="ABCD answeristhe:()[]{}\\boxed\n.,or不是答案选C", max_size=60))
def test_any_text_gets_a_verdict_and_a_letter_or_a_reason(text: str) -> None:
    statement = stated_choice(text, ["x"])
    assert [statement.letter, statement.text, statement.reason].count(None) == 2
    assert statement.letter is None or (len(statement.letter) == 1 and statement.letter.isupper())


@pytest.mark.parametrize(
    ("data", "right"),
    [
        ({"answer": "c", "choices": CITIES}, "C"),
        ({"answer": " C ", "choices": CITIES}, "C"),
        ({"answer": 2, "choices": CITIES}, "C"),
        ({"answer": "rome", "choices": CITIES}, "C"),
        ({"label": "Rome", "choices": tuple(CITIES)}, "C"),
        ({"answer": "Rome", "choices": dict(zip("PQRS", CITIES, strict=True))}, "R"),
        (
            {"answer": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "metadata": {"valid_letters": "PQ"}},
            "Q",
        ),
        ({"answer": "y", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}, "B"),
        ({"answer": "J"}, "J"),
        ({"answer": 9}, "J"),
        ({"answer": "Rome", "metadata": {"choices": CITIES}}, "C"),
        ({"answer": "Rome", "metadata": {"correct_letter": "d"}}, "D"),
        ({"answer": None, "metadata": {"correct_letter": "B"}}, "B"),
        ({"answer": None, "metadata": {"correct_answer": "Rome", "choices": CITIES}}, "C"),
        ({"answer": "AA", "choices": ["aa", "Aa", "AA"]}, "C"),
        ({"answer": "上海", "choices": ["北京", "上海"]}, "B"),
        ({"answer": "10^3", "choices": ["10^-3", "10^3"]}, "B"),
    ],
)
def test_golds(data: dict[str, Any], right: str) -> None:
    reward = pickle.loads(pickle.dumps(get_reward_fn("multiple_choice")))
    assert reward(completions=f"The answer is: {right}", **data).value == 1.0
    wrong = "A" if right != "A" else "B"
    assert reward(completions=f"The answer is: {wrong}", **data).value == 0.0


def test_the_text_of_a_gold_without_options() -> None:
    reward = get_reward_fn("multiple_choice")
    assert reward(completions="The answer is: New  York.", answer="New York").value == 1.0
    assert reward(completions="The answer is York", answer="New York").value == 0.0


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("The answer is A", 1.0),
        ("The answer is A because it rains", 1.0),
        ("the answer is a.", 1.0),
        ("The answer is (a), the first", 1.0),
        ("The answer is a mystery", 0.0),
        ("Answer: A good question", 0.0),
        ("A. London\nB. Paris", 0.0),
        ("London\nA. London", 1.0),
    ],
)
def test_an_article_is_no_option(completion: str, value: float) -> None:
    assert get_reward_fn("gpqa")(completions=completion, answer="A", choices=CITIES).value == value


def test_an_option_in_latex_is_read_to_its_last_brace() -> None:
    choices = [r"\frac{1}{3}", r"\frac{1}{2}"]
    completion = r"So \boxed{\frac{1}{2}} is what I found, as it should be"
    assert get_reward_fn("gpqa")(completions=completion, answer=1, choices=choices).value == 1.0
    assert get_reward_fn("gpqa")(completions=completion, answer=0, choices=choices).value == 0.0


def test_options_that_differ_in_case_only_are_told_apart_by_letters() -> None:
    reward = get_reward_fn("multiple_choice")
    assert reward(completions="The answer is aa", answer="AA", choices=["aa", "Bb", "AA"]).value == 0.0
    assert reward(completions="The answer is C", answer="AA", choices=["aa", "Bb", "AA"]).value == 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"answer": None}, "gold answer is None"),
        ({}, "gold answer is None"),
        ({"answer": True, "choices": CITIES}, "gold answer is True"),
        ({"answer": 4, "choices": CITIES}, "gold answer is 4"),
        ({"answer": -1, "choices": CITIES}, "gold answer is -1"),
        ({"answer": "E", "choices": CITIES}, "text of exactly one option of: 'London'"),
        ({"answer": "x", "choices": ["x", "x"]}, "exactly one option"),
        ({"answer": "", "choices": CITIES}, "exactly one option"),
        ({"answer": "A", "choices": "London"}, "needs a list of texts"),
        ({"answer": "A", "choices": 3}, "needs a list of texts"),
        ({"answer": "A", "choices": CITIES, "metadata": {"valid_letters": "AB"}}, "4 choices have only 2 letters"),
    ],
)
def test_an_item_without_a_right_option_is_an_error(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_reward_fn("multiple_choice")(completions="The answer is A", **data)


@pytest.mark.parametrize("before", ["The answer is B. ", "Let me think, word by word. "])
@pytest.mark.parametrize("completion", rows(RIGHT) + [row for row in rows(WRONG) if row])
def test_a_long_completion_is_read_from_its_end(completion: str, before: str) -> None:
    reward = get_reward_fn("gpqa")
    short = reward(completions=f"{before}\n\n{completion}", answer="C", choices=CITIES)
    for length in (3_800, 4_000, 4_200, 20_000):
        long = reward(completions=f"{before * (length // len(before))}\n\n{completion}", answer="C", choices=CITIES)
        assert (long.value, long.metadata) == (short.value, short.metadata)


def test_reasons_are_told() -> None:
    reward = get_reward_fn("gpqa")
    reasons = {"<think> C": "unfinished_think", "who knows": "no_answer", "The answer is C or D": "several_answers"}
    for completion, reason in reasons.items():
        assert reward(completions=completion, answer="C").metadata == {"reason": reason}
    assert reward(completions="C", answer="C", prompt="Think!<think>").metadata == {"reason": "unfinished_think"}


def test_columns_are_options() -> None:
    reward = get_reward_fn("TIGER-Lab/MMLU-Pro", answer_key="answer_index", choices_key="options")
    assert reward(completions="The answer is Rome", answer_index=2, options=CITIES, answer="A").value == 1.0
    for option in ("answer_key", "choices_key"):
        with pytest.raises(ConfigError, match=f"{option}='completions' of reward 'multiple_choice'"):
            get_reward_fn("gpqa", **{option: "completions"})
    with pytest.raises(ConfigError, match="compat='trl'"):
        get_reward_fn("gpqa", compat="trl")


@pytest.mark.parametrize(
    ("completion", "label", "metadata", "theirs", "ours"),
    [
        # "is" is read as the letter I.
        ("The answer is: C", "C", {}, 0.0, 1.0),
        ("The answer is (C)", "C", {}, 0.0, 1.0),
        ("The answer is: C", "C", {"choices": CITIES}, 1.0, 1.0),
        ("The answer is C", "C", {}, 1.0, 1.0),
        # "depends" is read as the letter D.
        ("The correct answer depends. The answer is C", "C", {}, 0.0, 1.0),
        # The text of a gold anywhere in the completion is enough.
        ("because", "B", {}, 1.0, 0.0),
        ("not paris", "Paris", {}, 1.0, 0.0),
        ("Romeo", "Rome", {"choices": ["Lima", "Rome"]}, 1.0, 0.0),
        # The first statement counts, not the last.
        ("The answer is A. No, the answer is C", "C", {"choices": CITIES}, 0.0, 1.0),
        ("The answer is C. No, the answer is A", "C", {"choices": CITIES}, 1.0, 0.0),
        # Inside of a thought that was not ended.
        ("<think>The answer is C", "C", {"choices": CITIES}, 1.0, 0.0),
        # Options without Latin letters are all the same to it.
        ("The answer is A", "上海", {"choices": ["北京", "上海"]}, 1.0, 0.0),
        ("The answer is B", "上海", {"choices": ["北京", "上海"]}, 0.0, 1.0),
        ("Not C", "C", {}, 1.0, 0.0),
        ("C or D", "D", {}, 1.0, 0.0),
        ("C", 2, {"correct_letter": "B"}, 1.0, 0.0),
        ("C", 2.7, {}, 1.0, None),
        ("Answer: c", "c", {"choices": CITIES}, 1.0, 1.0),
        ("</think>B</think>C", "C", {}, 1.0, 1.0),
        ("the answer", "E", {"valid_letters": ["X", "Y"]}, 1.0, None),
        ("", "C", {}, 0.0, 0.0),
    ],
)
def test_verdicts_of_slime(
    completion: str, label: Any, metadata: dict[str, Any], theirs: float, ours: float | None
) -> None:
    reward = get_reward_fn("gpqa", compat="slime")
    assert reward(completions=completion, label=label, metadata=metadata).value == theirs
    if ours is not None:
        assert get_reward_fn("gpqa")(completions=completion, label=label, metadata=metadata).value == ours


def test_slime_scores_an_item_without_a_gold() -> None:
    assert get_reward_fn("gpqa", compat="slime")(completions="The answer is C").value == 0.0


@pytest.mark.parametrize("compat", [None, "slime"])
@pytest.mark.parametrize(
    "piece",
    ["answer is ", "answer: ", "\\boxed{", " ", "(", "C is correct ", "answer is not C ", "答案是", "C. x\n", "\n"],
)
def test_half_a_megabyte_takes_linear_time(piece: str, compat: str | None) -> None:
    started = time.process_time()
    text = "answer" + piece * (500_000 // len(piece))
    assert get_reward_fn("gpqa", compat=compat)(completions=text, answer="C", choices=CITIES).value in (0.0, 1.0)
    assert time.process_time() - started < 10.0


async def test_it_runs_in_a_worker() -> None:
    wrapper = AsyncRewardWrapper(get_reward_fn("cais/mmlu"), timeout_seconds=30.0)
    wrapper.check_columns(["question", "subject", "choices", "answer"], prompt_key="question")
    outcome = await wrapper.outcome("Where?", "The answer is: C", choices=CITIES, answer=2, subject="cities")
    await close_default_pool()
    assert (outcome.status, outcome.value, outcome.metadata) == ("ok", 1.0, {"answer": "C"}), outcome.error


@pytest.mark.parametrize(
    "hedge",
    [
        *(
            "Answer: A; B; C; D",
            "Answer: A | B",
            "Answer: (A)(B)(C)(D)",
            "Answer: (A) (B)",
            r"\boxed{A;B}",
            "Answer: A → D",
        ),
        *(
            "Answer: A (or B)",
            "Answer: A (B)",
            r"\boxed{A\\B}",
            r"\boxed{A\text{ or }B}",
            "Answer: A\nB",
            "Answer: A\n\n(B)",
        ),
        *("Answer: A. B. C. D.", "Answer: A, I", "答案：A或B", "Answer: A?", "Answer: (A)?", "is the answer A?"),
    ],
)
def test_hedges_and_questions_earn_nothing(hedge: str) -> None:
    reward = get_reward_fn("multiple_choice")
    for gold in "AB":
        assert reward(completions=hedge, answer=gold).value == 0.0


@pytest.mark.parametrize(
    "text",
    [
        *(
            "Answer: A; the others are wrong",
            "Answer: A (because of x)",
            "Answer: (A) Paris",
            "Answer: A. Because B is wrong",
        ),
        *(
            "Answer: A\nBecause ...",
            "Answer: A\nA",
            "Answer: A, I am sure",
            "Answer: A. I am sure",
            "Answer: A (not B)",
        ),
        *("The answer is A. Or is the answer B?", "Answer: A → it is the capital"),
    ],
)
def test_one_letter_with_a_remark_is_one_answer(text: str) -> None:
    assert get_reward_fn("multiple_choice")(completions=text, answer="A").value == 1.0
