"""``areal-x reward test`` of functions for other libraries: the places of failures are the user's, with a hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_x.launch.reward_check import check_reward_function
from areal_x.launch.reward_check.error_text import digest

THEIRS = """
def slime_rm(args, sample):
    return float(len(sample.response)) * args.length_weight


def messages(prompts, completions, **kwargs):
    return [float("4" in completion[0]["content"]) for completion in completions]


async def async_messages(prompts, completions, **kwargs):
    return messages(prompts, completions)


def indexes_wrongly(prompts, completions, **kwargs):
    return [1.0 + None for completion in completions]


def returns_text(args, sample):
    return "good"
"""
ITEMS = [{"prompt": f"{n}+{n}=", "answer": f"#### {2 * n}"} for n in (1, 2, 3)]


@pytest.fixture
def check(tmp_path: Path) -> Any:
    file = tmp_path / "theirs.py"
    file.write_text(THEIRS)

    def run(library: str, name: str, **kwargs: Any) -> str:
        report = check_reward_function(f"{library}:{file}:{name}", ITEMS, kwargs=kwargs, runs=1, workers=1)
        return "\n".join(finding.message for finding in report.findings if finding.severity == "error")

    return run


def test_the_place_of_a_failure_is_in_the_users_file(check: Any) -> None:
    errors = check("slime", "slime_rm")
    assert "args.length_weight is not set; put length_weight into reward.kwargs at theirs.py:3" in errors


def test_a_failure_of_the_adapter_alone_has_no_place(check: Any) -> None:
    errors = check("slime", "returns_text")
    assert "is a str" in errors and " at " not in errors


@pytest.mark.parametrize("name", ["messages", "async_messages"])
def test_messages_that_are_texts_hint_at_conversational(check: Any, name: str) -> None:
    errors = check("trl", name)
    assert "string indices must be integers" in errors and "theirs.py:7" in errors
    assert "set reward.kwargs.conversational=true" in errors
    assert "conversational" not in check("trl", name, conversational=True)


def test_other_errors_of_types_have_no_hint(check: Any) -> None:
    errors = check("trl", "indexes_wrongly")
    assert "theirs.py:15" in errors and "conversational" not in errors


def test_built_in_rewards_keep_their_place() -> None:
    trace = (
        'Traceback:\n  File "/x/areal_x/process_pool/worker.py", line 3\n  File "/x/areal_x/reward/gsm8k.py", line 5\n'
    )
    assert digest(trace + "ValueError: none") == ("ValueError: none", "gsm8k.py:5")
