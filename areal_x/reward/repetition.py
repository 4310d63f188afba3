"""A penalty for saying the same again."""

from __future__ import annotations

from collections.abc import Sequence

from areal_x.reward.options import check_choice, check_number, check_whole_number
from areal_x.reward.registry import register_reward
from areal_x.reward.words import split_words

__all__ = ["RepetitionReward"]


@register_reward("repetition", extracts="runs of n words or tokens", returns="0 (no run twice) falling to -penalty")
class RepetitionReward:
    """``-penalty * (1 - distinct n-grams / all n-grams)``: 0 when no run of ``n`` words comes twice.

    The repetition penalty of Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv:2502.03373,
    as one number for the whole completion. A completion shorter than ``n`` gets 0.

    Args:
        n: length of a run, in units.
        penalty: its size, above 0.
        unit: ``words`` (as blanks separate them, without case; a Chinese or Japanese character is one) or ``tokens``.
    """

    def __init__(self, n: int = 4, penalty: float = 1.0, unit: str = "words") -> None:
        self.n = check_whole_number("repetition", "n", n, 1)
        self.penalty = check_number("repetition", "penalty", penalty, 0.0)
        check_choice("repetition", "unit", unit, ("tokens", "words"))
        self.unit = unit

    def __call__(self, completions: str, completion_ids: Sequence[int] | None = None) -> float:
        """Score one completion.

        Raises:
            ValueError: tokens are to be compared, and there are none.
        """
        if self.unit == "tokens" and completion_ids is None:
            raise ValueError("completion_ids is None, so there are no tokens to compare; pass them, or set unit: words")
        units: Sequence[object] = (completion_ids or ()) if self.unit == "tokens" else split_words(completions.lower())
        total = len(units) - self.n + 1
        if total < 1:
            return 0.0
        distinct = len(set(zip(*(units[start:] for start in range(self.n)), strict=False)))
        return -self.penalty * (1 - distinct / total) if self.penalty and distinct < total else 0.0
