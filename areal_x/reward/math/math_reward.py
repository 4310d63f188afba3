"""The ``math`` reward: Math-Verify's verdict on the last answer."""

from __future__ import annotations

from typing import Any

from areal_x.api.reward_api import RewardResult
from areal_x.reward.answers import after_thinking
from areal_x.reward.math.bounded_child import LimitReached
from areal_x.reward.math.finding import find_answer, find_gold
from areal_x.reward.math.grading import MathGrader, is_equal
from areal_x.reward.math.slime_grader import grade_math
from areal_x.reward.math.symbolic import verify_text
from areal_x.reward.registry import IN_A_BOX, register_reward

__all__ = ["MathReward"]


@register_reward(
    "math",
    datasets=["math-500", "math500", "hendrycks_math", "competition_math", "aime_2024", "aime_2025"],
    extracts='the last \\boxed{}, else #### line, else "answer is", else the last value',
    returns="1 or 0",
    boxed_as=IN_A_BOX,
)
class MathReward(MathGrader):
    r"""1 if the last ``\boxed{}`` (else ``####`` line, "answer is", last value) is the gold to Math-Verify; else 0.

    Inside a thought that was not ended nothing counts. ``compat="areal"`` gives AReaL's verdicts: Math-Verify searches
    the whole completion and the whole gold. ``compat="slime"`` gives those of slime's ``math`` as the integer 0 or 1.
    """

    name = "math"
    compatible = ("areal", "slime")

    def __call__(self, completions: str, prompt: str | None = None, **columns: Any) -> RewardResult | int:
        """Score one completion against the column ``answer`` (or ``label``).

        Raises:
            ValueError: the gold is missing or holds no answer.
        """
        try:
            if self.compat == "slime":
                return int(grade_math(completions, self.label(columns), self.limits))
            gold = str(self.gold(columns))
            if self.compat == "areal":
                return RewardResult(float(verify_text(gold, completions, self.limits, expressions_first=True)))
        except LimitReached as limit:
            return self.limit_verdict(limit)
        return self._repaired(completions, gold, prompt or "")

    def _repaired(self, completions: str, gold: str, prompt: str) -> RewardResult:
        wanted = find_gold(gold)
        text = after_thinking(completions, prompt)
        if text is None:
            return RewardResult(0.0, metadata={"reason": "unfinished_think"})
        found = find_answer(text)
        if found is None:
            return RewardResult(0.0, metadata={"reason": "no_answer"})
        metadata = {"answer": found.text[:200], "source": found.source}
        try:
            return RewardResult(float(is_equal(wanted, found, self.limits)), metadata=metadata)
        except LimitReached as limit:
            return self.limit_verdict(limit, metadata)
