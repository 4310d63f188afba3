"""Rewards for how long a completion is: near a target, short, or not beyond the end of its budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardResult
from areal_x.api.reward_shaping import overlong_penalty
from areal_x.reward.options import check_choice, check_number, check_whole_number
from areal_x.reward.registry import register_reward

__all__ = ["UNITS", "LengthReward", "OverlongReward", "completion_length"]

UNITS = ("characters", "tokens")
"""What a length may be counted in."""


def completion_length(unit: str, completions: str, completion_ids: Sequence[int] | None) -> int:
    """The number of characters or tokens of a completion.

    Raises:
        ValueError: tokens are to be counted, and ``completion_ids`` is None.
    """
    if unit == "characters":
        return len(completions)
    if completion_ids is None:
        raise ValueError("completion_ids is None, so the tokens cannot be counted; pass them, or set unit: characters")
    return len(completion_ids)


@register_reward("length", extracts="the number of tokens or characters", returns="1 falling to 0, on a line or cosine")
class LengthReward:
    """1 at the wanted length, falling to 0 away from it.

    With distance ``d`` (0 at the wanted length, 1 where the reward ends) the reward is ``1 - d`` (``linear``) or
    ``(1 + cos(pi * d)) / 2`` (``cosine``: flat near the wanted length and near the end), and 0 beyond. The cosine is
    the one of Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv:2502.03373, without
    correctness; weigh it against an accuracy, alone it teaches length only.

    Args:
        target: the wanted length: ``d = |length - target| / tolerance``.
        tolerance: how far from ``target`` the reward ends. Default: ``target`` itself.
        maximum: instead of ``target``: the shorter the better, ``d = length / maximum``.
        unit: ``tokens`` or ``characters``.
        shape: ``linear`` or ``cosine``.
    """

    def __init__(
        self,
        target: int | None = None,
        tolerance: int | None = None,
        maximum: int | None = None,
        unit: str = "tokens",
        shape: str = "linear",
    ) -> None:
        if (target is None) == (maximum is None):
            raise ConfigError("reward 'length' needs either target or maximum, for example {target: 500}")
        if maximum is not None and tolerance is not None:
            raise ConfigError("tolerance of reward 'length' belongs to target; drop it, or set target for maximum")
        check_choice("length", "unit", unit, UNITS)
        check_choice("length", "shape", shape, ("linear", "cosine"))
        self.unit = unit
        self.shape = shape
        if target is None:
            self.center, self.width = 0, check_whole_number("length", "maximum", maximum, 1)
            return
        self.center = check_whole_number("length", "target", target, 0 if tolerance else 1)
        self.width = self.center if tolerance is None else check_whole_number("length", "tolerance", tolerance, 1)

    def __call__(self, completions: str, completion_ids: Sequence[int] | None = None) -> RewardResult:
        """Score one completion; the length is a part.

        Raises:
            ValueError: tokens are to be counted, and there are none.
        """
        length = completion_length(self.unit, completions, completion_ids)
        distance = min(1.0, abs(length - self.center) / self.width)
        value = 1.0 - distance if self.shape == "linear" else (1.0 + math.cos(math.pi * distance)) / 2.0
        return RewardResult(value, parts={"length": float(length)})


@register_reward("overlong", extracts="the number of tokens or characters", returns="0, falling to -penalty at the end")
class OverlongReward:
    """The soft overlong punishment of DAPO: 0 up to ``maximum - buffer``, then a line to ``-penalty`` at ``maximum``.

    ``min(0, max(-1, (maximum - buffer - length) / buffer)) * penalty``, equation 13 of Yu et al. 2025, "DAPO: An
    Open-Source LLM Reinforcement Learning System at Scale", arXiv:2503.14476.

    Args:
        maximum: the length from which the whole penalty is due.
        buffer: over how long it grows.
        penalty: its size, above 0.
        unit: ``tokens`` or ``characters``.
    """

    def __init__(self, maximum: int, buffer: int, penalty: float = 1.0, unit: str = "tokens") -> None:
        check_choice("overlong", "unit", unit, UNITS)
        self.maximum = check_whole_number("overlong", "maximum", maximum, 1)
        self.buffer = check_whole_number("overlong", "buffer", buffer, 1)
        if self.buffer > self.maximum:
            raise ConfigError(
                f"buffer={buffer} of reward 'overlong' is above maximum={maximum}; it lies before its end"
            )
        self.penalty = check_number("overlong", "penalty", penalty, 0.0)
        self.unit = unit

    def __call__(self, completions: str, completion_ids: Sequence[int] | None = None) -> float:
        """Score one completion.

        Raises:
            ValueError: tokens are to be counted, and there are none.
        """
        length = completion_length(self.unit, completions, completion_ids)
        return overlong_penalty(length, self.maximum, self.buffer, self.penalty)
