"""Each classic mistake of a reward is found by a check of a real file with that mistake, and nothing else is."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.errors import ConfigError, DataError
from areal_x.launch.reward_check import RewardReport, check_reward_function, check_reward_function_async
from areal_x.launch.reward_check.table import render_text

FILE = Path(__file__).with_name("bad_rewards.py")
ITEMS = [
    {
        "question": "How many clips are 48 and half as many?",
        "answer": "48 / 2 = 24 clips.\n48 + 24 = 72 clips.\n#### 72",
    },
    {
        "question": "What are 50 minutes at 12 an hour?",
        "answer": "It is 12 / 60 = 0.2 a minute.\nSo 0.2 * 50.\n#### 10",
    },
    {"question": "What is left of 100 after 95?", "answer": "The sum is 100.\nWe take 95.\n#### 5"},
]


def check(name: str, *, data: Any = ITEMS, completions: Any = None, **options: Any) -> RewardReport:
    return check_reward_function(f"{FILE}:{name}", data, completions, workers=1, **options)


@functools.cache
def plain_check(name: str) -> RewardReport:
    """The check of a reward with its options for the tests here, made once."""
    return check(name, **options_of(name))


CLEAN = ["good", "good_async", "swallows_by_name", "scaled", "best_of_group"]
MISTAKES = [
    ("sleeps", {"blocking_call", "event_loop_stall"}),
    ("naps_in_a_helper", {"blocking_call"}),
    ("computes", {"event_loop_stall"}),
    ("anonymous", {"cannot_start"}),
    ("closure", {"cannot_start"}),
    ("HoldsALock", {"cannot_start"}),
    ("always_half", {"constant_score"}),
    ("always_zero", {"all_zero"}),
    ("needs_a_column", {"missing_column"}),
    ("misspelt", {"missing_column"}),
    ("takes_by_position", {"bad_signature"}),
    ("gives_a_bool", {"not_a_reward"}),
    ("gives_nan", {"not_a_reward"}),
    ("gives_another_key", {"not_a_reward"}),
    ("one_too_few", {"not_a_reward"}),
    ("gives_none", {"never_applies"}),
    ("fails_on_empty", {"raises"}),
    ("hangs_on_garbage", {"timeout"}),
    ("exits_on_empty", {"crash"}),
]
WEAKNESSES = [
    ("misspelt_default", {"argument_never_given"}),
    ("huge", {"huge_score", "wrong_texts_rewarded"}),
    ("swallows", {"swallowed_exception"}),
    ("draws", {"unseeded_random", "not_deterministic"}),
    ("draws_with_a_seed", set()),
    ("counts_calls", {"shared_state", "not_deterministic"}),
    ("CountsCalls", {"shared_state"}),
    ("slow", {"slow"}),
    ("chatters", {"prints_much"}),
    ("chatters_async", {"prints_much"}),
    ("reads_prompt_and_completion", {"reads_the_prompt"}),
    ("finds_anywhere", {"wrong_texts_rewarded"}),
    ("likes_repetition", {"wrong_texts_rewarded", "gold_not_rewarded"}),
    ("likes_silence", {"wrong_texts_rewarded", "gold_not_rewarded"}),
]
ABOUT_SCORES = {"gold_not_rewarded", "wrong_texts_rewarded"}
"""Found in addition where a reward for a test does not look at the answer."""


def options_of(name: str) -> dict[str, Any]:
    if name == "hangs_on_garbage":
        return {"timeout_seconds": 0.25, "limit": 1, "runs": 1}
    if name == "slow":
        texts = [{"completions": ["a", "ab"]}]
        return {"timeout_seconds": 5.0, "completions": texts, "runs": 1, "kwargs": {"seconds": 2.6}}
    if name in ("computes", "sleeps"):
        return {"limit": 1, "runs": 1}
    return {}


@pytest.mark.parametrize("name", CLEAN)
def test_a_good_reward_has_no_findings(name: str) -> None:
    report = plain_check(name)
    assert report.findings == [] and report.ok
    assert report.agreement.agreed == report.agreement.known == len(report.samples) == len(report.scores)


@pytest.mark.parametrize(("name", "expected"), MISTAKES, ids=[name for name, _ in MISTAKES])
def test_a_mistake_that_stops_a_run_is_an_error(name: str, expected: set[str]) -> None:
    report = plain_check(name)
    errors = {finding.name for finding in report.findings if finding.severity == "error"}
    assert errors == expected and not report.ok
    assert report.finding_names() <= expected | ABOUT_SCORES


@pytest.mark.parametrize(("name", "expected"), WEAKNESSES, ids=[name for name, _ in WEAKNESSES])
def test_a_weakness_is_a_warning(name: str, expected: set[str]) -> None:
    report = plain_check(name)
    assert report.ok and expected <= report.finding_names() <= expected | ABOUT_SCORES


def message(report: RewardReport, name: str) -> str:
    return next(f"{finding.message} → {finding.fix}" for finding in report.findings if finding.name == name)


def test_findings_name_the_place_and_the_fix() -> None:
    sleeps = plain_check("sleeps")
    assert "time.sleep" in message(sleeps, "blocking_call")
    stall = message(sleeps, "event_loop_stall")
    line = next(n for n, text in enumerate(FILE.read_text().splitlines(), 1) if "time.sleep(0.03)" in text)
    assert f"bad_rewards.py:{line} (time.sleep(0.03))" in stall
    assert "nap blocks the event loop" in message(plain_check("naps_in_a_helper"), "blocking_call")
    assert "did you mean 'completions'?" in message(plain_check("misspelt"), "missing_column")
    assert "'answer' is meant" in message(plain_check("misspelt_default"), "argument_never_given")
    assert "return float(...)" in message(plain_check("gives_a_bool"), "not_a_reward")
    assert "--reward-key" in message(plain_check("gives_another_key"), "not_a_reward")
    assert "IndexError: list index out of range at bad_rewards.py:" in message(plain_check("fails_on_empty"), "raises")
    assert "lock" in message(plain_check("HoldsALock"), "cannot_start")
    assert "2 results for a group of" in message(check("one_too_few", group_size=3), "not_a_reward")


def test_errors_of_one_line_are_one_finding_whatever_they_say() -> None:
    report = check("always_raises")
    assert [finding.name for finding in report.findings] == ["raises"]
    assert "42 of 42 calls raise NotImplementedError" in report.findings[0].message
    assert "gold solutions, too" in report.findings[0].fix


def test_a_column_like_a_reward_argument_is_found_before_anything_runs() -> None:
    report = check("good", data=[{"prompt": "1+1", "answer": "2", "completions": "x"}])
    assert report.finding_names() == {"column_collision"} and not report.outcomes and not report.ok


def test_scores_that_are_not_those_of_the_file_are_errors() -> None:
    completions = [
        {"completions": ["#### 72", "#### 73"], "expected": [1, 0]},
        {"completion": "#### 10", "reward": 0.0},
    ]
    report = check("good", completions=completions)
    assert report.finding_names() == {"disagrees_with_file"} and not report.ok
    assert [sample.item for sample in report.samples] == [0, 0, 1]
    assert report.agreement.cells == ((1, 1), (0, 1)) and report.agreement.disagreeing == (2,)
    assert "item 1 scores 1, expected 0" in message(report, "disagrees_with_file")


def test_a_score_of_the_file_is_compared_as_a_number() -> None:
    report = check("scaled", completions=[{"completion": "#### 72", "expected": 0.8}], kwargs={"scale": 0.7})
    assert report.finding_names() == {"disagrees_with_file"}
    assert check("scaled", completions=[{"completion": "#### 72", "expected": 0.7}], kwargs={"scale": 0.7}).ok


def test_a_reward_that_wants_another_form_is_tried_in_it() -> None:
    items = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "3+4=", "answer": "7"}]
    assert check("wants_a_box", data=items).finding_names() == {"all_zero"}
    assert check("wants_a_box", data=items, gold_format="\\boxed{{answer}}").findings == []


def test_without_gold_solutions_nothing_is_said_about_them() -> None:
    report = check("likes_anything_long", data=[{"prompt": "Write a poem."}])
    assert "no_gold" in report.finding_names() and report.ok
    assert {sample.kind for sample in report.samples} == {"empty", "garbage", "echo"}


def test_large_columns_that_go_to_workers_for_nothing_are_found() -> None:
    items = [{"prompt": "1+1", "answer": "2", "image": "x" * 50_000}]
    assert "takes_every_column" in check("takes_everything", data=items).finding_names()
    assert "takes_every_column" not in check("likes_anything_long", data=items).finding_names()


def test_a_tokenizer_renders_the_prompt_and_makes_the_ids(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[?]": 0, "user": 1, "1": 2}, unk_token="[?]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    report = check("counts_tokens", data=[{"prompt": "1 1", "answer": "7 7 7 7"}], tokenizer=str(tmp_path))
    assert report.samples[0].prompt == "user 1 1 "
    assert report.of_kind("gold")[0][1].parts == {"prompt": 3.0, "completion": 4.0}


def test_a_reward_may_ask_whether_the_completion_was_cut_off() -> None:
    report = check("not_if_cut_off")
    assert {outcome.status for _, outcome in report.of_kind("truncated")} == {"not_applicable"}
    assert {outcome.status for _, outcome in report.of_kind("gold")} == {"ok"} and report.findings == []


def test_a_group_reward_gets_all_completions_of_an_item() -> None:
    report = check("best_of_group", group_size=4)
    assert report.is_group and len(report.samples) == 12
    assert [outcome.value for outcome in report.outcomes[:4]] == pytest.approx([0.75, -0.25, -0.25, -0.25])
    completions = [{"completions": ["#### 72", "#### 72", "?"]}]
    by_file = check("best_of_group", completions=completions)
    assert [outcome.value for outcome in by_file.outcomes] == pytest.approx([1 / 3, 1 / 3, -2 / 3])


def test_a_group_reward_that_changes_the_order_is_found() -> None:
    report = check("sorts_its_group", group_size=3)
    assert "in the order of the samples" in message(report, "not_deterministic")


def test_an_object_is_started_and_closed_and_its_totals_are_shown() -> None:
    report = check("Judge")
    assert report.findings == [] and report.runs.totals == {"requests": 2.0 * len(report.samples)}
    assert "requests" in str(report)
    broken = check("Judge", kwargs={"address": "there"})
    assert "start() raises ConnectionRefusedError: nobody answers at there" in message(broken, "cannot_start")
    assert not broken.outcomes and broken.finding_names() == {"cannot_start"}


def test_a_function_of_the_notebook_works_while_its_loop_runs() -> None:
    async def cell() -> tuple[RewardReport, RewardReport]:
        return check_reward_function(short, ITEMS, workers=1), await check_reward_function_async(
            short, ITEMS, workers=1
        )

    in_thread, awaited = asyncio.run(cell())
    assert in_thread.scores == awaited.scores and len(in_thread.scores) == len(in_thread.samples)
    assert not [thread for thread in threading.enumerate() if "areal-x" in thread.name]


def short(completions: str) -> float:
    return float(len(completions) < 20)


def test_an_interrupt_ends_a_check_in_a_notebook() -> None:
    async def cell() -> None:
        check(name="slow", limit=None)

    loop = asyncio.new_event_loop()
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        loop.run_until_complete(cell())
    timer.join()
    loop.close()
    assert not [thread for thread in threading.enumerate() if "areal-x" in thread.name]


def test_the_report_is_shown_as_text_as_html_and_as_json() -> None:
    items = [{"prompt": "<script>alert(1)</script> \x1b[2J", "answer": "#### 1"}]
    report = check("finds_anywhere", data=items)
    html = report._repr_html_()
    assert "&lt;script&gt;" in html and "<script" not in html and "wrong_texts_rewarded" in html
    assert "\x1b" not in str(report) and "\\x1b[2J" in str(report)
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert written["outcomes"]["ok"] == 2 * len(report.samples) and written["ok"] is True
    assert [sample["kind"] for sample in written["samples"]] == [sample.kind for sample in report.samples]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["good", "fails_on_empty", "exits_on_empty", "anonymous", "best_of_group"])
def test_the_tables_fit_the_terminal(name: str, width: int) -> None:
    lines = render_text(plain_check(name), width).splitlines()
    assert max(map(len, lines)) <= width and len(lines) > 4


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"limit": 0}, ConfigError, "limit=0 must be at least 1"),
        ({"runs": 0}, ConfigError, "runs=0"),
        ({"timeout_seconds": 0.0}, ConfigError, "timeout_seconds=0.0"),
        ({"timeout_second": 3}, ConfigError, "did you mean 'timeout_seconds'?"),
        ({"gold_format": "answer"}, ConfigError, "must contain {gold} or {answer}"),
        ({"data": []}, DataError, "data is empty"),
        ({"data": [{"text": "x"}]}, DataError, "data[0] has no prompt in column 'prompt'"),
        ({"data": "nowhere.jsonl"}, DataError, "no such file"),
        ({"completions": []}, DataError, "holds no completions"),
        ({"completions": ["a"] * 4}, DataError, "completions[3]: the data has 3 items only"),
        ({"completions": [{"text": "a"}]}, DataError, "no column 'completion'"),
        ({"completions": [{"completion": 3}]}, DataError, "holds a int, expected text"),
        ({"completions": [{"completions": ["a", "b"], "expected": [1]}]}, DataError, "1 scores for 2 completions"),
        ({"completions": [{"completion": "a", "expected": "yes"}]}, DataError, "'yes', expected a number"),
        ({"kwargs": {"scal": 2}}, ConfigError, "reward.kwargs.scal is not an option"),
        ({"gold_key": "solution"}, DataError, "no column 'solution' for gold solutions, only question, answer"),
        ({"tokenizer": "./nowhere"}, ConfigError, "tokenizer='./nowhere' cannot be loaded"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as raised:
        check("good", **options)
    assert expected in str(raised.value)


def test_options_of_a_function_object_are_bound_by_its_owner() -> None:
    with pytest.raises(ConfigError, match=r"functools\.partial"):
        check_reward_function(short, ITEMS, kwargs={"limit": 3})
    assert check_reward_function(functools.partial(short), ITEMS, workers=1).reward == "short"


@pytest.mark.skipif("AREAL_X_GSM8K" not in os.environ, reason="AREAL_X_GSM8K names no GSM8K data")
def test_the_gsm8k_reward_on_gsm8k() -> None:
    path = Path(os.environ["AREAL_X_GSM8K"]) / "test.jsonl"
    report = check_reward_function("gsm8k", path, limit=400)
    assert report.findings == [] and report.data.prompt_key == "question"
    golds = report.of_kind("gold")
    assert len(golds) == len(report.data.rows) == 400 and all(outcome.value == 1.0 for _, outcome in golds)
    assert all(outcome.value == 0.0 for _, outcome in report.of_kind("wrong"))
