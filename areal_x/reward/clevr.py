"""The CLEVR counting reward: is the last number in brackets or a box the count?"""

from __future__ import annotations

import re
from typing import Any

from areal_x.api.reward_api import RewardResult
from areal_x.reward.answers import after_thinking, last_boxed, parse_number
from areal_x.reward.hedges import denies
from areal_x.reward.options import check_choice
from areal_x.reward.registry import IN_A_BOX, register_reward

__all__ = ["clevr_count_70k"]

_BRACKETED = re.compile(r"\[\s*([-+]?[0-9][0-9.,]*|\.[0-9]+)\s*\]|\\boxed")
_AREAL_BRACKETED = re.compile(r"\[([0-9\.]+)\]")


@register_reward(
    "clevr_count_70k",
    datasets=["clevr_count_70k"],
    extracts="the last [number] or \\boxed{number}",
    returns="1 or 0",
    boxed_as=IN_A_BOX,
)
def clevr_count_70k(completions: str, answer: Any, prompt: str = "", *, compat: str | None = None) -> RewardResult:
    r"""1 if the last ``[number]`` or ``\boxed{number}`` equals the gold count as a number (3.0 is 3); else 0.

    ``compat="areal"`` compares the texts between the last brackets and the gold, so that 3.0 is not 3.

    Raises:
        ConfigError: ``compat`` is neither None nor ``areal``.
        ValueError: the gold is not a number.
    """
    if compat == "areal":
        found = _AREAL_BRACKETED.findall(completions)
        return RewardResult(float((found[-1] if found else "") == str(answer).strip()))
    check_choice("clevr_count_70k", "compat", compat, (None, "areal"))
    gold_text = last_boxed(str(answer)) or str(answer).strip().strip("[]")
    gold = parse_number(gold_text)
    if gold is None:
        raise ValueError(f"the gold {str(answer)[:100]!r} of clevr_count_70k is not a number")
    text = after_thinking(completions, prompt)
    if text is None:
        return RewardResult(0.0, metadata={"reason": "unfinished_think"})
    found_text = _last_bracketed(text)
    if found_text is None:
        return RewardResult(0.0, metadata={"reason": "no_answer"})
    if denies(found_text, gold_text):
        return RewardResult(0.0, metadata={"answer": found_text[:200], "reason": "denied"})
    number = parse_number(found_text)
    return RewardResult(float(number is not None and number == gold), metadata={"answer": found_text[:200]})


def _last_bracketed(text: str) -> str | None:
    boxed = last_boxed(text)
    for match in reversed(list(_BRACKETED.finditer(text[-20_000:]))):
        if match.group(1) is not None:
            return str(match.group(1))
        if boxed is not None:
            return boxed.strip("[] ")
    return None
