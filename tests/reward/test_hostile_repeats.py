"""No completion keeps a grader busy: every one gets 100 KB of a repeated piece, with each of its options."""

from __future__ import annotations

import inspect
import time
import unicodedata
from typing import Any

import pytest

from areal_x.reward.registry import get_reward_fn, list_rewards
from areal_x.reward.words import compatible_form

_SIZE = 100_000
_PIECES = (
    *(
        "\\boxed",
        "\\boxed{",
        "\\boxed ",
        "\\boxed{}",
        "\\boxed{[",
        "[",
        "]",
        "[]",
        "[1",
        "([",
        "{",
        "}",
        "{}",
        "(",
        ")",
    ),
    *("<think>", "</think>", "</think>\\boxed{", "<answer>", "<|think|>", "answer", "Answer:", "Answer: A, ", "####"),
    *("$", "$1", "\\", "\\text{", "\\text{ ", "\\frac", "\\frac{", "7", "1,", ",", "1,234", "1 ", "-", "^", "=", "."),
    *(" ", "\n", " \n", "\t", "a ", "or ", "不是", "\u0301", "\u0315\u0300", "a\u0315\u0300", "\u3099\u0315", "|", ";"),
)
_OPENED = "<think>"
_GRADERS = {
    "arithmetic": ({},),
    "clevr_count_70k": ({}, {"compat": "areal"}),
    "dapo": ({}, {"compat": "slime"}),
    "deepscaler": ({}, {"compat": "slime"}),
    "f1": ({}, {"compat": "slime"}),
    "format": ({"answer": "marked"}, {"answer": "boxed"}, {"tags": ["think", "answer"]}),
    "geometry3k": ({}, {"format_weight": 0.1}),
    "gsm8k": ({},),
    "length": ({"target": 100, "unit": "characters"},),
    "math": ({}, {"compat": "slime"}),
    "multiple_choice": ({}, {"compat": "slime"}),
    "overlong": ({"maximum": 100, "buffer": 10, "unit": "characters"},),
    "repetition": ({},),
    "boxed_f1": ({},),
    "boxed_multiple_choice": ({},),
}
_OTHERS = {
    *("code", "composite", "cosine", "judge", "random", "remote_rm", "reward_model"),
}
"""They run a program or ask a server, or score nothing themselves."""


def test_every_grader_of_text_is_in_the_list() -> None:
    built_in = {entry.name for entry in list_rewards() if entry.is_builtin}
    assert built_in - _OTHERS == {name for name in _GRADERS if not name.startswith("boxed_")}


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, several in _GRADERS.items() for options in several]
)
def test_repeats_take_linear_time(name: str, options: dict[str, Any]) -> None:
    grader = get_reward_fn(name, **options)
    columns = {"answer": "A" if "choice" in name else "7", "completion_ids": [1]}
    taken = {key: value for key, value in columns.items() if key in inspect.signature(grader).parameters}
    grader(completions="</think> \\boxed{7 + 1}", **taken)  # What it imports is not measured.
    slow = []
    for piece in _PIECES:
        for start in ("", _OPENED) if "format_weight" in options else ("",):
            text = start + piece * (_SIZE // len(piece))
            begun = time.process_time()
            grader(completions=text, **taken)
            seconds = time.process_time() - begun
            if seconds > 0.5:
                slow.append((start + piece, round(seconds, 2)))
    assert not slow


def test_long_runs_of_marks_are_cut_and_short_ones_stay() -> None:
    kept = "e\u0301 " + "\u0e01" + "\u0315\u0300" * 15 + "x"
    assert compatible_form(kept) == unicodedata.normalize("NFKC", kept)
    assert compatible_form("e" + "\u0300" * 1000 + "x") == unicodedata.normalize("NFKC", "e" + "\u0300" * 30 + "x")
