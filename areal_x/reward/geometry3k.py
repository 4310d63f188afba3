"""The Geometry3K reward: the last answer in brackets or a box against a gold that may be LaTeX."""

from __future__ import annotations

import re
from typing import Any

from areal_x.api.reward_api import RewardResult
from areal_x.reward.answers import after_thinking, last_number
from areal_x.reward.math.bounded_child import LimitReached
from areal_x.reward.math.finding import FoundAnswer, find_answer, find_gold
from areal_x.reward.math.grading import MathGrader, is_equal
from areal_x.reward.math.symbolic import verify_text
from areal_x.reward.options import check_number
from areal_x.reward.registry import IN_A_BOX, register_reward

__all__ = ["Geometry3kReward"]

_LAST_NUMBER = re.compile(r"-?\d*\.?\d+")
_SHAPE = ("<think>", "</think>", "\\boxed{", "}")
_TAIL = 20_000


@register_reward(
    "geometry3k",
    datasets=["geometry3k"],
    extracts="the last \\boxed{} or [...], else the last number",
    returns="1 or 0; with format_weight a share for the format",
    boxed_as=IN_A_BOX,
)
class Geometry3kReward(MathGrader):
    r"""1 if the last ``\boxed{}`` or ``[...]`` (else the last number) equals the gold, LaTeX or not; else 0.

    ``compat="areal"`` gives AReaL's verdicts: the gold, too, is cut down to its last bracket or number.

    Args:
        compat: None or ``areal``.
        answer_key: the column of the gold answer, by default ``answer`` or ``label``.
        format_weight: the share of the reward that is for the shape ``<think>...</think>...\boxed{...}``; AReaL's
            example gives 0.1 to it and 0.9 to the answer.
        time_limit: seconds that one answer may take.
        limit_value: the verdict on an answer that hits a limit.
        memory_limit_mb: memory that one answer may take.
    """

    name = "geometry3k"
    compatible = ("areal",)

    def __init__(
        self,
        compat: str | None = None,
        answer_key: str | None = None,
        *,
        format_weight: float = 0.0,
        time_limit: float = 5.0,
        limit_value: float = 0.0,
        memory_limit_mb: int = 512,
    ) -> None:
        super().__init__(
            compat, answer_key, time_limit=time_limit, limit_value=limit_value, memory_limit_mb=memory_limit_mb
        )
        self.format_weight = check_number(self.name, "format_weight", format_weight, 0.0, 1.0)

    def __call__(self, completions: str, prompt: str | None = None, **columns: Any) -> RewardResult:
        """Score one completion against the column ``answer`` (or ``label``).

        Raises:
            ValueError: the gold is missing or empty.
        """
        gold = str(self.gold(columns))
        metadata: dict[str, Any] = {}
        try:
            if self.compat == "areal":
                accuracy = self._areal(completions, gold)
            else:
                accuracy, metadata = self._repaired(completions, gold, prompt or "")
        except LimitReached as limit:
            accuracy, metadata = self.limit_value, {"reason": limit.reason}
        if not self.format_weight:
            return RewardResult(accuracy, metadata=metadata)
        begun = "<think>" + completions if (prompt or "").rstrip().endswith("<think>") else completions
        shape = float(_has_shape(begun))
        value = (1.0 - self.format_weight) * accuracy + self.format_weight * shape
        return RewardResult(value, parts={"accuracy": accuracy, "format": shape}, metadata=metadata)

    def _repaired(self, completions: str, gold: str, prompt: str) -> tuple[float, dict[str, Any]]:
        wanted = find_gold(gold)
        text = after_thinking(completions, prompt)
        if text is None:
            return 0.0, {"reason": "unfinished_think"}
        found = _last_marked_answer(text)
        if found is None:
            return 0.0, {"reason": "no_answer"}
        equal = is_equal(wanted, found, self.limits)
        return float(equal), {"answer": found.text[:200], "source": found.source}

    def _areal(self, completions: str, gold: str) -> float:
        given, wanted = _areal_extract(completions), _areal_extract(gold) or gold
        if not given or not wanted:
            return 0.0
        return float(verify_text(wanted, given, self.limits, expressions_first=True))


def _last_marked_answer(text: str) -> FoundAnswer | None:
    """The last box or bracket, whichever comes later; else the last number."""
    tail = text[-_TAIL:]
    boxed = find_answer(tail) if "\\boxed" in tail else None
    if boxed is not None and boxed.source == "boxed":
        behind = tail[tail.rfind("\\boxed") :]
        behind = behind[behind.find(boxed.text) + len(boxed.text) :] if boxed.text in behind else ""
        later = [content for content in _bracketed(behind) if re.search(r"\w", content)]
        return FoundAnswer(later[-1].strip(), "bracket") if later else boxed
    brackets = _bracketed(tail)
    if brackets and brackets[-1].strip():
        return FoundAnswer(brackets[-1].strip(), "bracket")
    number = last_number(text)
    return FoundAnswer(number.replace("\\$", "").replace("$", ""), "number") if number is not None else None


def _bracketed(text: str) -> list[str]:
    r"""What ``\[([^\]]+)\]`` finds, in linear time where no bracket closes."""
    found = []
    opened = text.find("[")
    while opened >= 0:
        closed = text.find("]", opened)
        if closed < 0:
            break
        if closed > opened + 1:
            found.append(text[opened + 1 : closed])
        opened = text.find("[", closed)
    return found


def _has_shape(text: str) -> bool:
    """Whether a text that begins with the first mark has the others behind it in their order."""
    if not text.startswith(_SHAPE[0]):
        return False
    position = 0
    for mark in _SHAPE:
        position = text.find(mark, position)
        if position < 0:
            return False
        position += len(mark)
    return True


def _areal_extract(text: str) -> str:
    brackets = _bracketed(text)
    if brackets:
        return brackets[-1]
    numbers = _LAST_NUMBER.findall(text.replace(",", ""))
    return str(numbers[-1]) if numbers else ""
