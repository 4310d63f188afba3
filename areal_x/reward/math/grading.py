"""One verdict of Math-Verify: at once where it is plain, a refusal where it is hopeless, else in a bounded child."""

from __future__ import annotations

import re
from typing import Any

from areal_x.api.reward_api import RewardResult
from areal_x.reward.hedges import denies
from areal_x.reward.math.bounded_child import LimitReached, Limits
from areal_x.reward.math.exact import compare
from areal_x.reward.math.finding import FoundAnswer
from areal_x.reward.math.symbolic import normalized, prepare, verify_text
from areal_x.reward.options import (
    argument_signature,
    check_choice,
    check_column,
    check_number,
    check_whole_number,
    gold_answer,
)

__all__ = ["MathGrader", "is_equal", "refusal"]

MAX_LENGTH = 1000
MAX_DEPTH = 40
_LONG_DIGITS = re.compile(r"\d{500}")
_HOPELESS = re.compile(r"(?:\^|\*\*)[{(\s]*-?\d+[)\s]*(?:\^|\*\*)[{(\s]*-?\d+[)\s]*(?:\^|\*\*)|\d{6}[)}\s]*!")
_DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]+", re.ASCII)
_BRACKETS = re.compile(r"[][(){}]")


def refusal(answer: str) -> str | None:
    """Why no child is started for this answer, in one word; None if one is."""
    if len(answer) > MAX_LENGTH:
        return "math_too_long"
    if _LONG_DIGITS.search(answer):
        return "math_too_many_digits"
    if _HOPELESS.search(answer):
        return "math_large_power"
    depth = deepest = 0
    for bracket in _BRACKETS.findall(answer):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return "math_too_deep" if deepest > MAX_DEPTH else None


def is_equal(gold: FoundAnswer, answer: FoundAnswer, limits: Limits) -> bool:
    """Whether Math-Verify takes ``answer`` for ``gold``; False, too, for one that denies a gold which is no inequality.

    Raises:
        LimitReached: the answer is refused, or could not be decided within ``limits``.
    """
    reason = refusal(answer.text)
    if reason is not None:
        raise LimitReached(reason)
    if answer.whole and denies(answer.text, gold.text):
        return False
    if gold.whole and answer.whole:
        verdict = compare(normalized(gold.text), normalized(answer.text))
        if verdict is not True and _DECIMAL_COMMA.fullmatch(gold.text):
            # In a gold, "1,22" is a number with a decimal comma as well as a list of two.
            verdict = compare(normalized(gold.text.replace(",", ".")), normalized(answer.text)) or verdict
        if verdict is not None:
            return verdict
    return verify_text(gold.for_math_verify, answer.for_math_verify, limits)


class MathGrader:
    """What the math rewards have in common: their limits, the value of a limit that was hit, the gold column.

    Args:
        compat: None for the repaired verdicts, or the library whose verdicts are given with all their quirks.
        answer_key: the column of the gold answer, by default ``answer`` or ``label``.
        time_limit: seconds that one answer may take; then its child is killed.
        limit_value: the verdict on an answer that is refused or hits a limit.
        memory_limit_mb: memory that one answer may take.
    """

    name: str = "math"
    compatible: tuple[str, ...] = ()

    def __init__(
        self,
        compat: str | None = None,
        answer_key: str | None = None,
        *,
        time_limit: float = 5.0,
        limit_value: float = 0.0,
        memory_limit_mb: int = 512,
    ) -> None:
        check_choice(self.name, "compat", compat, (None, *self.compatible))
        if answer_key is not None:
            check_column(self.name, "answer_key", answer_key)
        self.compat = compat
        self.answer_key = answer_key
        self.limit_value = check_number(self.name, "limit_value", limit_value)
        seconds = check_number(self.name, "time_limit", time_limit, low=0.001)
        self.limits = Limits(seconds, check_whole_number(self.name, "memory_limit_mb", memory_limit_mb, low=64) << 20)
        self.__signature__ = argument_signature(answer_key, ("prompt",))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in the pool's helper process: import SymPy there once, so that no worker has to."""
        self.__dict__.update(state)
        prepare()

    def gold(self, columns: dict[str, Any]) -> Any:
        """The gold of an item.

        Raises:
            ValueError: it has none.
        """
        return gold_answer(self.name, columns, self.answer_key)

    def label(self, columns: dict[str, Any]) -> Any:
        """The gold as another library would get it: None where the item has none."""
        keys = (self.answer_key,) if self.answer_key is not None else ("answer", "label")
        return next((columns[key] for key in keys if columns.get(key) is not None), None)

    def limit_verdict(self, limit: LimitReached, metadata: dict[str, Any] | None = None) -> RewardResult:
        """The verdict on an answer that hit ``limit``."""
        return RewardResult(self.limit_value, metadata={**(metadata or {}), "reason": limit.reason})
