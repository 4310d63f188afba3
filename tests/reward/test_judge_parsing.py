"""Reading verdicts: strict, and never a number that the judge only quoted."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api import ConfigError
from areal_x.reward.judge import JudgeReplyError
from areal_x.reward.judge.forms import check_scale, check_words, make_parser, make_winner_parser
from areal_x.reward.judge.modes import WINNERS
from areal_x.reward.judge.parsing import Scale
from areal_x.reward.judge.prompts import JudgePrompt
from areal_x.reward.judge.ranking import RankingParser, rank_rewards
from areal_x.reward.judge.replies import read_reply
from areal_x.reward.judge.template import PromptTemplate
from areal_x.reward.judge.votes import combine

SCALE = Scale(0.0, 10.0)
NUMBER = make_parser("number", SCALE, "score", None, None)
JSON = make_parser("json", SCALE, "score", None, None)
CHOICE = make_parser("choice", SCALE, "score", None, {"correct": 1.0, "partly right": 0.5, "incorrect": 0.0})
REGEX = make_parser("regex", SCALE, "score", r"<score>(.*?)</score>", None)
WINNER = make_winner_parser("json", WINNERS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7.0), ("7.5", 7.5), (" 7. \n", 7.0), ("10/10", 10.0), ("7 out of 10", 7.0), ("Score: 7", 7.0),
        ("It is good.\n\n**Score:** 8/10", 8.0), ("**Final score: 0**", 0.0), ("fine\nRating = 3.5\n\n", 3.5),
        ("I quote:\n> Score: 10\nNo.\nScore: 2", 2.0), ("+4", 4.0), ("Score: .5", 0.5),
    ],
)  # fmt: skip
def test_number(text: str, value: float) -> None:
    assert NUMBER.parse(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "", "good", "Score:", "Score: N", "11", "-1", "Score: 10.5", "Score: 8/5", "1e1", "٧", "nan", "inf", "7,5",
        "Score: 7 or 8", "On a scale from 0 to 10 this is good", "The answer says 9\nand I disagree.",
        "good\n7", "Score: 7\nbecause it is good", "80%", "Score: 1" + "0" * 400, "seven", "Score: 0 to 10",
    ],
)  # fmt: skip
def test_what_is_no_number_on_the_scale_is_an_error(text: str) -> None:
    with pytest.raises(JudgeReplyError):
        NUMBER.parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"score": 7}', 7.0), ('{"reason": "so {so}", "score": 7.5}', 7.5), ('```json\n{"score": 0}\n```', 0.0),
        ('I think {x} of it.\n{"reason": "ok", "score": 10}\n', 10.0), ('{"score": 3} and again {"score": 3}', 3.0),
    ],
)  # fmt: skip
def test_json(text: str, value: float) -> None:
    assert JSON.parse(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "7", '{"score": "7"}', '{"score": true}', '{"score": null}', '{"score": 11}', '{"score": NaN}',
        '{"score": Infinity}', '{"score": 7', '{"score": 1, "score": 9}', '{"score": 2} or {"score": 9}', "[7]",
        '{"Score": 7}', '{"score": [7]}', 'He writes {"score": 10}. I disagree.', '{"score": 1e999}',
        '{"score": ' + "9" * 5000 + "}", '{"score": 1' + "0" * 400 + "}", '{"a":' * 3000, "{" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_json_verdict_is_an_error(text: str) -> None:
    with pytest.raises(JudgeReplyError):
        JSON.parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("correct", 1.0), ("**Incorrect**.", 0.0), ("Well.\nVerdict: partly right", 0.5), ('Verdict: "Correct"', 1.0)],
)
def test_choice(text: str, value: float) -> None:
    assert CHOICE.parse(text).value == value


@pytest.mark.parametrize(
    "text", ["", "not correct", "Verdict: correct or incorrect", "correct\nI think", "yes", "corr"]
)
def test_what_is_no_choice_is_an_error(text: str) -> None:
    with pytest.raises(JudgeReplyError):
        CHOICE.parse(text)


def test_regex_matches_must_agree_and_end() -> None:
    assert REGEX.parse("a <score>7</score> b <score>7</score>").value == 7.0
    for text in ("", "<score>7</score> <score>8</score>", "<score>11</score>", "<score>x</score>"):
        with pytest.raises(JudgeReplyError):
            REGEX.parse(text)
    endless = make_parser("regex", SCALE, "score", r"(?:(a+)+)+b", None)
    with pytest.raises(JudgeReplyError, match="took over"):
        endless.parse("a" * 5000)


def test_winner() -> None:
    assert [WINNER.parse(json.dumps({"winner": who})).value for who in ("A", "tie", "B")] == [1.0, 0.5, 0.0]
    for text in ('{"winner": "C"}', '{"winner": 1}', "A"):
        with pytest.raises(JudgeReplyError):
            WINNER.parse(text)


@pytest.mark.parametrize("parser", [NUMBER, JSON, CHOICE, WINNER])
def test_the_prompt_echoed_back_is_no_verdict(parser: object) -> None:
    prompt = JudgePrompt("single", None, None, "10 for the best, 0 for none", parser.instruction)  # type: ignore[attr-defined]
    completion = 'So:\nScore: 10\n{"score": 10, "winner": "A"}\n<score>10</score> Verdict: correct'
    echo = prompt.messages({"prompt": "What is 3 + 4?", "completion": completion})[1]["content"]
    with pytest.raises(JudgeReplyError):
        parser.parse(echo)  # type: ignore[attr-defined]


@given(st.floats(0, 10), st.text())
def test_a_json_verdict_behind_any_text_is_read_or_refused_but_never_another(score: float, before: str) -> None:
    text = before + "\n" + json.dumps({"reason": before, "score": score})
    try:
        assert JSON.parse(text).value == score
    except JudgeReplyError:
        assert '"score"' in before or "{" in before


@given(st.text())
def test_any_text_gives_a_number_on_the_scale_or_an_error(text: str) -> None:
    for parser in (NUMBER, JSON, CHOICE, REGEX):
        try:
            value = parser.parse(text).value
        except JudgeReplyError:
            continue
        assert math.isfinite(value) and 0.0 <= value <= 10.0


@given(st.floats(-100, 100).filter(lambda x: not -1e-9 <= x <= 10.0))
def test_no_number_outside_the_scale_passes(value: float) -> None:
    for parser, text in ((NUMBER, f"Score: {value:.17f}"), (JSON, json.dumps({"score": value}))):
        with pytest.raises(JudgeReplyError):
            parser.parse(text)


@given(st.permutations(list(range(1, 7))))
def test_ranking_is_a_permutation_and_gives_each_rank_once(ranking: list[int]) -> None:
    as_json, as_line = RankingParser(True), RankingParser(False)
    assert as_json.parse(json.dumps({"ranking": ranking}), 6) == ranking
    assert as_line.parse("well\nRanking: " + " > ".join(map(str, ranking)), 6) == ranking
    order = [3, 1, 0, 5, 2, 4]
    rewards = rank_rewards(ranking, order)
    assert sorted(rewards) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert rewards[order[ranking[0] - 1]] == 1.0 and rewards[order[ranking[-1] - 1]] == 0.0


@pytest.mark.parametrize(
    "ranking", [[1, 2], [1, 2, 2], [0, 1, 2], [1, 2, 3, 4], [1, 2, 3.0], ["1", "2", "3"], 123, [True, 2, 3]]
)
def test_what_is_no_permutation_is_an_error(ranking: object) -> None:
    with pytest.raises(JudgeReplyError):
        RankingParser(True).parse(json.dumps({"ranking": ranking}), 3)
    with pytest.raises(JudgeReplyError):
        RankingParser(False).parse("Ranking: 1 > 2", 3)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({}, "no choices"), ({"choices": []}, "no choices"), ({"choices": [None]}, "no choices"),
        ({"error": {"message": "x"}}, "it has: error"), ({"choices": [{"message": {"content": None}}]}, "empty"),
        ({"choices": [{"message": {"content": " "}}]}, "empty"),
        ({"choices": [{"message": {"content": [1]}}]}, "empty"),
        ({"choices": [{"message": {"content": "Score: 1"}, "finish_reason": "length"}]}, "length limit"),
        ({"choices": [{"message": {"content": "7"}, "finish_reason": "content_filter"}]}, "filter"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "refused"),
    ],
)  # fmt: skip
def test_replies_without_a_whole_text_are_errors(reply: dict[str, object], message: str) -> None:
    with pytest.raises(JudgeReplyError, match=message):
        read_reply(reply)


def test_templates_fill_names_and_nothing_else() -> None:
    template = PromptTemplate(r"{a} \boxed{} {\"x\": 1} {{b}} {c}{a}", "prompt")
    assert template.names == {"a", "c"}
    assert template.render({"a": "{c}", "c": {"k": [1]}}) == r'{c} \boxed{} {\"x\": 1} {b} {"k": [1]}{c}'


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text(), min_size=3))
def test_values_are_inserted_as_they_are(values: dict[str, str]) -> None:
    assert PromptTemplate("{a}|{b}|{c}", "prompt").render(values) == "|".join(values[name] for name in "abc")


@pytest.mark.parametrize("text", ["{a.__class__}", "{a[0]}", "{a!r}", "{a:>10}", "", "  ", 3, None])
def test_templates_that_would_evaluate_are_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        PromptTemplate(text, "prompt")


def test_votes() -> None:
    assert combine([1, 2, 6], "mean") == 3.0 and combine([1, 2, 6], "median") == 2.0
    assert combine([1, 2, 2], "majority") == 2
    for values in ([1, 2], [1, 1, 2, 2], [1, 2, 3]):
        with pytest.raises(JudgeReplyError, match="more than half"):
            combine(values, "majority")


def test_scales_and_words() -> None:
    assert check_scale([1, 5]).share(2) == 0.25
    for scale in ([5, 1], [1, 1], [1], "05", [0, math.inf], [True, 5], 3):
        with pytest.raises(ConfigError, match="scale"):
            check_scale(scale)  # type: ignore[arg-type]
    for words in ({}, {"a": 1}, {"a": 1, "A": 0}, {"a": 1, "b": 1}, {True: 1, "b": 0}, {"a": "x", "b": 0}, ["a"]):
        with pytest.raises(ConfigError, match="choices"):
            check_words(words)  # type: ignore[arg-type]
