"""slime's ``deepscaler`` and ``dapo``, repaired, or with exactly its verdicts under ``compat="slime"``."""

from __future__ import annotations

import re
from typing import Any

from areal_x.api.reward_api import RewardResult
from areal_x.reward.answers import after_thinking
from areal_x.reward.hedges import denies, digits_apart
from areal_x.reward.math.bounded_child import LimitReached
from areal_x.reward.math.finding import FoundAnswer, find_answer, find_gold
from areal_x.reward.math.grading import MathGrader, is_equal, refusal
from areal_x.reward.math.slime_grader import grade_dapo, grade_deepscaler
from areal_x.reward.math.slime_strings import dapo_form, hendrycks_form
from areal_x.reward.registry import IN_A_BOX, register_reward

__all__ = ["DapoReward", "DeepScalerReward"]

_ANSWER_LINE = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
_ANSWER_LINE_WINDOW = 2000


@register_reward(
    "deepscaler",
    datasets=["deepscaler-preview-dataset"],
    extracts="the last \\boxed{} outside of the thought",
    returns="1 or 0",
    boxed_as=IN_A_BOX,
)
class DeepScalerReward(MathGrader):
    r"""1 if the last ``\boxed{}`` outside of the thought equals the gold, as text or by Math-Verify; else 0.

    ``compat="slime"`` gives slime's verdicts as the integer 0 or 1; there a completion without ``</think>`` gets 0.
    """

    name = "deepscaler"
    compatible = ("slime",)

    def __call__(self, completions: str, prompt: str | None = None, **columns: Any) -> RewardResult | int:
        """Score one completion against the column ``answer`` (or ``label``).

        Raises:
            TypeError, ValueError: the gold is missing or nothing to compare with.
        """
        if self.compat == "slime":
            try:
                return int(grade_deepscaler(completions, self.label(columns), self.limits))
            except LimitReached as limit:
                return self.limit_verdict(limit)
        gold = find_gold(str(self.gold(columns)))
        text = after_thinking(completions, prompt or "")
        if text is None:
            return RewardResult(0.0, metadata={"reason": "unfinished_think"})
        found = find_answer(text) if "\\boxed" in text else None
        if found is None or found.source != "boxed":
            return RewardResult(0.0, metadata={"reason": "no_answer"})
        metadata = {"answer": found.text[:200], "source": found.source}
        try:
            return RewardResult(float(_same(gold, found, self)), metadata=metadata)
        except LimitReached as limit:
            return self.limit_verdict(limit, metadata)


def _same(gold: FoundAnswer, found: FoundAnswer, grader: MathGrader) -> bool:
    # The form cuts an answer at a unit: "72 \\text{ or } 73" would be 72. An answer may have the gold's units alone.
    same_units = gold.text.count("\\text{") == found.text.count("\\text{") and not denies(found.text, gold.text)
    same_form = same_units and hendrycks_form(gold.text) == hendrycks_form(found.text)
    return same_form or is_equal(gold, found, grader.limits)


@register_reward(
    "dapo",
    datasets=["dapo-math-17k"],
    extracts="the last Answer: line, else the last \\boxed{}",
    returns="1 or -1",
    boxed_as="Answer: {}",
)
class DapoReward(MathGrader):
    r"""+1 if the last ``Answer:`` line (else the last ``\boxed{}``) equals the gold by Math-Verify; else -1.

    A limit that an answer hits counts as wrong, too: ``limit_value`` is -1 here. ``parts`` holds ``acc`` as 0 or 1.
    ``compat="slime"`` gives the dict that slime's function returns (``score``, ``acc``, ``pred``); set
    ``reward.reward_key=score`` for it.
    """

    name = "dapo"
    compatible = ("slime",)

    def __init__(
        self,
        compat: str | None = None,
        answer_key: str | None = None,
        *,
        time_limit: float = 5.0,
        limit_value: float = -1.0,
        memory_limit_mb: int = 512,
    ) -> None:
        super().__init__(
            compat, answer_key, time_limit=time_limit, limit_value=limit_value, memory_limit_mb=memory_limit_mb
        )

    def __call__(self, completions: str, prompt: str | None = None, **columns: Any) -> RewardResult | dict[str, Any]:
        """Score one completion against the column ``answer`` (or ``label``).

        Raises:
            ValueError: the gold is missing; under ``compat="slime"`` also one that is not a number.
        """
        if self.compat == "slime":
            right, given = grade_dapo(completions, self.label(columns))
            return {"score": 1.0 if right else -1.0, "acc": right, "pred": given}
        gold = find_gold(str(self.gold(columns)))
        text = after_thinking(completions, prompt or "")
        if text is None:
            return RewardResult(-1.0, parts={"acc": 0.0}, metadata={"reason": "unfinished_think"})
        found = _answer_line(text) or (find_answer(text) if "\\boxed" in text else None)
        if found is None:
            return RewardResult(-1.0, parts={"acc": 0.0}, metadata={"reason": "no_answer"})
        metadata = {"answer": found.text[:200], "source": found.source}
        try:
            right = _same_dapo_form(gold.text, found.text) or is_equal(gold, found, self.limits)
        except LimitReached as limit:
            return RewardResult(self.limit_value, {"acc": 0.0}, metadata={**metadata, "reason": limit.reason})
        return RewardResult(1.0 if right else -1.0, parts={"acc": float(right)}, metadata=metadata)


def _same_dapo_form(gold: str, given: str) -> bool:
    # The form drops blanks and commas: "1,2" would be 12.
    if refusal(given) is not None or digits_apart(given) or digits_apart(gold) or denies(given, gold):
        return False
    return dapo_form(gold) == dapo_form(given)


def _answer_line(text: str) -> FoundAnswer | None:
    lines = _ANSWER_LINE.findall(text[-_ANSWER_LINE_WINDOW:])
    if not lines:
        return None
    line = lines[-1].strip().strip("*").strip()
    if "\\boxed" in line:
        boxed = find_answer(line)
        return FoundAnswer(boxed.text, "answer_line") if boxed is not None and boxed.source == "boxed" else None
    content = line.rstrip(".").strip("*").strip()
    for opened, closed in (("$", "$"), ("\\(", "\\)")):
        if content.startswith(opened) and content.endswith(closed) and len(content) > len(opened):
            content = content[len(opened) : -len(closed)].strip()
    return FoundAnswer(content, "answer_line") if content else None
