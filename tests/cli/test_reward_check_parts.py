"""The pure parts of the check of a reward: completions made from data, figures, short texts, static checks."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.reward_records import RewardOutcome
from areal_x.launch.reward_check.completion_file import read_samples
from areal_x.launch.reward_check.derived import KINDS, derive_samples, truncated_solution, wrong_solution
from areal_x.launch.reward_check.error_text import clipped, digest
from areal_x.launch.reward_check.loop_watch import LoopWatch
from areal_x.launch.reward_check.options import CheckOptions
from areal_x.launch.reward_check.samples import PromptTexts, Sample, load_check_data
from areal_x.launch.reward_check.static_checks import static_findings
from areal_x.launch.reward_check.summary import agreement, differing, histogram, percentile
from areal_x.reward.composite import CompositeReward
from areal_x.reward.registry import get_reward_fn

ITEMS = [{"id": "a", "prompt": "1+1=", "answer": "2"}, {"id": "b", "prompt": "Which?", "answer": "(C)"}]


@pytest.mark.parametrize(
    ("gold", "wrong"),
    [
        ("48+24 = 72\n#### 72", "48+24 = 72\n#### 73"),
        ("#### 1,000", "#### 1001"),
        ("#### 0.5", "#### 1.5"),
        ("It is 7.", "It is 8."),
        ("A", "B"),
        ("(C)", "(A)"),
        ("yes", "no"),
    ],
)
def test_a_wrong_solution_differs_in_its_answer_only(gold: str, wrong: str) -> None:
    assert wrong_solution(gold, ["Yes", "no"]) == wrong


def test_there_may_be_no_wrong_solution() -> None:
    assert wrong_solution("yes", ["Yes", "yes "]) is None


@given(st.text(max_size=60), st.lists(st.text(max_size=10), max_size=3))
def test_a_wrong_solution_is_never_the_right_one(gold: str, others: list[str]) -> None:
    assert wrong_solution(gold, others) != gold


@given(st.text(max_size=80))
def test_a_cut_solution_is_the_beginning_without_the_answer(gold: str) -> None:
    cut = truncated_solution(gold)
    assert cut is None or (cut.strip() and gold.startswith(cut) and len(cut) <= len(gold) // 2)


def test_a_cut_solution_does_not_hold_the_answer_by_chance() -> None:
    assert truncated_solution("He has 72 of them, and so on and on and on.\n#### 72") == "He has "
    assert truncated_solution("72") is not None and truncated_solution("7") is None


def test_every_kind_is_made_for_every_item_and_the_same_each_time() -> None:
    options = CheckOptions()
    data = load_check_data(ITEMS, options, None)
    samples = derive_samples(data, PromptTexts(options, "prompt"), options, is_group=False)
    assert samples == derive_samples(data, PromptTexts(options, "prompt"), options, is_group=False)
    assert [sample.kind for sample in samples if sample.item == 1] == list(KINDS)
    assert [sample.expected for sample in samples if sample.item == 1] == [1.0] + [0.0] * 6
    assert all("prompt" not in sample.columns for sample in samples)
    leak = next(sample for sample in samples if sample.kind == "leak")
    assert leak.completion == "" and leak.prompt == "1+1=\n2\n"


def test_a_group_has_one_prompt_and_the_wanted_size() -> None:
    options = CheckOptions(group_size=8)
    data = load_check_data(ITEMS, options, None)
    samples = derive_samples(data, PromptTexts(options, "prompt"), options, is_group=True)
    assert len(samples) == 16 and len({sample.prompt for sample in samples}) == 2
    assert {sample.kind for sample in samples} == set(KINDS) - {"leak"}


def read(completions: Any, **options: Any) -> list[Sample]:
    settings = CheckOptions(**options)
    data = load_check_data(ITEMS, settings, None)
    return read_samples(completions, data, PromptTexts(settings, "prompt"), settings)


def test_completions_belong_to_items_by_id_or_in_order(tmp_path: Path) -> None:
    by_id = [{"id": "b", "completion": "C"}, {"id": "a", "completion": "2"}, {"id": "b", "completion": "A"}]
    assert [sample.item for sample in read(by_id)] == [1, 0, 1]
    assert [sample.item for sample in read(by_id, limit=2)] == [1, 0]
    assert [sample.item for sample in read(["x", "y"])] == [0, 1]
    file = tmp_path / "scored.jsonl"
    file.write_text('{"completions": ["2", "3"], "expected": [1, null]}\n{"response": "C", "truncated": true}\n')
    samples = read(file)
    assert [(sample.item, sample.expected, sample.truncated) for sample in samples] == [
        (0, 1.0, False),
        (0, None, False),
        (1, None, True),
    ]


def test_messages_are_put_one_below_the_other() -> None:
    texts = PromptTexts(CheckOptions(), "prompt")
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    assert texts.prompt({"prompt": messages}) == "system: Be short.\nuser: Hi"
    assert texts.ids("é") == [0xC3, 0xA9]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=200))
def test_the_bars_hold_every_score_once(scores: list[float]) -> None:
    bars = histogram(scores)
    assert sum(count for _, count in bars) == len(scores) and len(bars) <= 10


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values and sum(value <= found for value in values) >= share * len(values) - 1e-6


@given(st.lists(st.tuples(st.sampled_from([None, 0.0, 1.0]), st.sampled_from([None, 0.0, 0.2, 1.0])), max_size=40))
def test_agreement_counts_what_is_known_and_scored(pairs: list[tuple[float | None, float | None]]) -> None:
    samples = [Sample(0, "gold", "", "", {}, expected) for expected, _ in pairs]
    outcomes = [RewardOutcome("error" if score is None else "ok", score) for _, score in pairs]
    found = agreement(samples, outcomes, 0.5)
    known = [(e > 0.5, s > 0.5) for e, s in pairs if e is not None and s is not None]
    assert found.known == len(known) == sum(map(sum, found.cells))
    assert found.agreed == sum(e == s for e, s in known) == found.known - len(found.disagreeing)


def test_runs_that_end_otherwise_differ() -> None:
    ok, failed = RewardOutcome("ok", 1.0, {"a": 1.0}), RewardOutcome("timeout", error="late")
    other_part = RewardOutcome("ok", 1.0, {"a": 2.0}, seconds=3.0)
    slower = RewardOutcome("ok", 1.0, {"a": 1.0}, seconds=9.0)
    assert differing([[ok, ok, ok, failed], [slower, failed, other_part, failed]]) == [1, 2]


@given(st.text(max_size=300), st.integers(20, 100))
def test_a_clipped_text_is_one_short_line_without_control_characters(text: str, length: int) -> None:
    shown = clipped(text, length)
    assert shown.isprintable() and len(shown) <= length * 10
    if text.isprintable():
        assert len(shown) <= length and (len(text) > length or shown == text)


def test_a_digest_is_the_last_line_and_its_place() -> None:
    trace = 'Traceback (most recent call last):\n  File "/x/pool.py", line 1, in a\n  File "/x/mine.py", line 7, in b\n'
    assert digest(f"{trace}ValueError: no\n\nprinted:\nhello") == ("ValueError: no", "mine.py:7")
    assert digest("mine did not return within 1 s") == ("mine did not return within 1 s", "")


async def test_the_watch_sees_a_loop_that_stands_still_and_no_other() -> None:
    with LoopWatch(0.05) as watch:
        await asyncio.sleep(0.2)
    assert watch.stalls == []
    with LoopWatch(0.05) as watch:
        time.sleep(2.0)
        await asyncio.sleep(0.1)
    assert [stall.place for stall in watch.stalls][:1] == [
        f"{Path(__file__).name}:{_line_of('time.sleep(2.0)')} (time.sleep(2.0))"
    ]
    assert 0.1 < watch.stalls[0].seconds < 60


def _line_of(text: str) -> int:
    return next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.strip() == text)


class Wrapped:
    """An object below a partial and a decorator."""

    @staticmethod
    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def inner(**arguments: Any) -> float:
            return function(**arguments)

        return inner


@Wrapped.decorate
def hidden(completions: str) -> float:
    try:
        return float(completions)
    except (ValueError, Exception):
        score = -1.0
    return score


def reraises(completions: str) -> float:
    try:
        return float(completions)
    except Exception as error:
        if "nan" in completions:
            return 0.0
        raise RuntimeError("no number") from error


async def awaits_a_thread(completions: str) -> float:
    await asyncio.to_thread(time.sleep, 0.0)
    return 1.0


class Object:
    """Its mistakes stand in a method."""

    def __call__(self, completions: str) -> float:
        return self.grade(completions)

    def grade(self, completions: str) -> float:
        self.last = completions
        try:
            return float(completions)
        except Exception:
            return 0.0


@pytest.mark.parametrize(
    ("reward", "is_async", "expected"),
    [
        (Object(), False, ["swallowed_exception", "shared_state"]),
        (Object().grade, False, ["swallowed_exception", "shared_state"]),
        (
            CompositeReward({"a": {"fn": f"{__file__}:reraises"}, "b": {"fn": f"{__file__}:hidden"}}),
            False,
            ["swallowed_exception"],
        ),
        (get_reward_fn(f"trl:{__file__}:hidden"), False, ["swallowed_exception"]),
        (functools.partial(hidden), False, ["swallowed_exception"]),
        (reraises, False, []),
        (awaits_a_thread, True, []),
        (len, False, []),
        (lambda completions: 1.0, False, []),
    ],
)
def test_static_checks_read_what_is_called_in_the_end(reward: Any, is_async: bool, expected: list[str]) -> None:
    assert [finding.name for finding in static_findings(reward, is_async=is_async)] == expected
