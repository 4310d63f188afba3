"""F1 of words: the repaired default, its properties, and slime's verdicts."""

from __future__ import annotations

import inspect
import pickle
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.errors import ConfigError
from areal_x.reward import get_reward_fn
from areal_x.reward.f1 import f1_score
from areal_x.reward.slime_text import slime_f1
from areal_x.reward.words import answer_words, split_words

VOCABULARY = ["the", "a", "cat", "Cat", "cat.", "sat", "yes", "no", "noanswer", "北京", "日本", "3.5", "35", "-5", "é"]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=8)
TEXTS = st.one_of(st.text(max_size=40), WORDS.map(" ".join))


@pytest.mark.parametrize(
    ("completion", "gold", "theirs", "ours"),
    [
        ("Paris", "Paris", 1.0, 1.0),
        ("the  Paris!", "paris", 1.0, 1.0),
        ("It is Paris", "Paris", 0.5, 0.5),
        ("London", "Paris", 0.0, 0.0),
        ("yes", "yes", 1.0, 1.0),
        ("yes it is", "yes", 0.0, 0.0),
        ("no", "yes", 0.0, 0.0),
        ("noanswer", "", 0.0, 0.0),
        # Two empty answers are equal: a question without an answer was left unanswered (SQuAD 2.0).
        ("", "", 0.0, 1.0),
        ("the", "a", 0.0, 1.0),
        ("", "Paris", 0.0, 0.0),
        # No blanks between the words of Chinese and Japanese.
        ("答案是北京", "北京", 0.0, 4 / 7),
        ("北京。", "北京", 0.0, 1.0),
        ("“Ｐａｒｉｓ”", "Paris", 0.0, 1.0),
        # The point and the sign belong to the number.
        ("35", "3.5", 1.0, 0.0),
        ("5", "-5", 1.0, 0.0),
        ("1,000", "1000", 1.0, 1.0),
        # A thought is not the answer.
        ("<think>London London London</think>Paris", "Paris", 0.0, 1.0),
        ("<think>Paris", "Paris", 0.0, 0.0),
        ("I think Paris", "Paris", 0.5, 0.5),
    ],
)
def test_verdicts(completion: str, gold: str, theirs: float, ours: float) -> None:
    assert get_reward_fn("f1", compat="slime")(completions=completion, answer=gold).value == pytest.approx(theirs)
    assert get_reward_fn("f1")(completions=completion, answer=gold).value == pytest.approx(ours)


@given(TEXTS, TEXTS)
def test_it_is_a_symmetric_share(left: str, right: str) -> None:
    for score in (f1_score, slime_f1):
        assert 0.0 <= score(left, right) <= 1.0
        assert score(left, right) == pytest.approx(score(right, left))
    assert f1_score(left, left) == 1.0


@given(WORDS, WORDS)
def test_the_order_of_words_does_not_count(left: list[str], right: list[str]) -> None:
    assert f1_score(" ".join(left), " ".join(right)) == pytest.approx(
        f1_score(" ".join(reversed(left)), " ".join(right))
    )


@given(st.text(max_size=60))
def test_words_hold_no_blanks_and_no_marks(text: str) -> None:
    words = answer_words(text)
    assert all(word and not any(map(str.isspace, word)) for word in words)
    assert not any(mark in word for word in words for mark in "!?,;:()\"'。，")
    assert "".join(split_words(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("gold", "value"),
    [
        (["London", "Paris"], 1.0),
        (("Paris", "the city of Paris"), 1.0),
        ({"text": ["Paris"], "answer_start": [3]}, 1.0),
        ({"text": [], "answer_start": []}, 0.0),
        ([], 0.0),
        (1789, 0.0),
    ],
)
def test_the_nearest_of_several_golds_counts(gold: Any, value: float) -> None:
    assert get_reward_fn("f1")(completions="Paris", answer=gold).value == value


def test_a_question_without_an_answer() -> None:
    assert get_reward_fn("f1")(completions=" ", answer=[]).value == 1.0
    assert get_reward_fn("f1")(completions="1789", answer=1789).value == 1.0


@pytest.mark.parametrize("compat", [None, "slime"])
@pytest.mark.parametrize("gold", [None, True, 3.5j, [None], [["x"]], {"texts": ["x"]}])
def test_an_item_without_a_gold_is_an_error(gold: Any, compat: str | None) -> None:
    with pytest.raises(ValueError, match="gold answer"):
        get_reward_fn("f1", compat=compat)(completions="x", answer=gold)


def test_the_column_is_an_option() -> None:
    assert set(inspect.signature(get_reward_fn("f1")).parameters) == {"completions", "answer", "label", "prompt"}
    reward = pickle.loads(pickle.dumps(get_reward_fn("f1", answer_key="golds")))
    parameters = inspect.signature(reward).parameters
    assert set(parameters) == {"completions", "golds", "prompt"}
    assert parameters["golds"].default is inspect.Parameter.empty
    assert reward(completions="x", golds=["x"], answer="y").value == 1.0
    assert get_reward_fn("f1")(completions="x", label="x").value == 1.0
    with pytest.raises(ValueError, match="column answer or label"):
        get_reward_fn("f1")(completions="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compat": "verl"}, "compat='verl' of reward 'f1' is not one of: null, slime"),
        ({"answer_key": "prompt"}, "is not the name of a data column"),
        ({"answer_key": 3}, "is not the name of a data column"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_reward_fn("f1", **options)


def test_an_unfinished_thought_says_so() -> None:
    reward = get_reward_fn("hotpotqa/hotpot_qa")
    assert reward(completions="Paris", answer="Paris", prompt="?<think>\n").metadata == {"reason": "unfinished_think"}


@pytest.mark.parametrize(
    "text", ["x " * 500_000, "．" * 1_000_000, "\0" * 1_000_000, "a" * 1_000_000, "北" * 1_000_000]
)
def test_a_megabyte_takes_linear_time(text: str) -> None:
    started = time.process_time()
    assert 0.0 <= get_reward_fn("f1")(completions=text, answer="Paris").value <= 1.0
    assert time.process_time() - started < 10.0
