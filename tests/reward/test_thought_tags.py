"""Where a thought ends, under each tag that models write it with."""

from __future__ import annotations

import time

import pytest

from areal_x.reward import get_reward_fn
from areal_x.reward.answers import after_thinking, without_open_thought

_OPENINGS = (
    *("<think>", "<THINK>", "<think >", "< think>", "<thinking>", "<Thought>", "<reasoning>", "<|think|>"),
    *("\u25c1think\u25b7", "[THINK]"),
)


def _closing(opening: str) -> str:
    name = opening.strip("<>[]|\u25c1\u25b7 ")
    return opening.replace(name, f"/{name}")


@pytest.mark.parametrize("opening", _OPENINGS)
@pytest.mark.parametrize("name", ["math", "gsm8k", "boxed_math"])
def test_an_unfinished_thought_under_any_tag_earns_nothing(opening: str, name: str) -> None:
    reward = get_reward_fn(name)
    assert reward(completions=opening + r" \boxed{72}", answer="72", prompt="").value == 0.0
    assert reward(completions=r" \boxed{72}", answer="72", prompt=opening + "\n").value == 0.0
    finished = opening + r" \boxed{70}" + _closing(opening) + r" \boxed{72}"
    assert reward(completions=finished, answer="72", prompt="").value == 1.0
    closed = r" \boxed{70}" + _closing(opening) + r" \boxed{72}"
    assert reward(completions=closed, answer="72", prompt=opening).value == 1.0


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("plain", "plain"),
        ("<think>a</THINK>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a</think>b<think>c", None),
        ("<think>the tag <thinking></think>b", "b"),
        ("<think>a</thinking>b", None),
        ("<thinking>a</thinking><think>b</think>c", "c"),
        ("a</think>b", "b"),
        ("I had a [thought]", "I had a [thought]"),
        ("1 < thinking", "1 < thinking"),
    ],
)
def test_a_thought_ends_at_the_last_tag_of_its_own_name(text: str, rest: str | None) -> None:
    assert after_thinking(text) == rest


def test_what_begins_a_thought_is_taken_from_the_end_of_a_prompt() -> None:
    assert without_open_thought("Think.\n<thinking>\n") == "Think.\n"
    assert without_open_thought("<think></think>") == "<think></think>"


@pytest.mark.parametrize("piece", ["<", "< ", "<think", "<think>", "</think>", "<|", "[", "</think><thinking>"])
def test_the_search_is_linear(piece: str) -> None:
    begun = time.process_time()
    after_thinking(piece * (1_000_000 // len(piece)))
    assert time.process_time() - begun < 1.0
