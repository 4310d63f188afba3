"""Accuracy and length in one: the right answer is worth more when it is short, the wrong one less."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardResult
from areal_x.reward.length import UNITS, completion_length
from areal_x.reward.options import check_choice, check_number, check_whole_number
from areal_x.reward.parts import RewardPart, merged_signature
from areal_x.reward.registry import register_reward

__all__ = ["CosineReward"]


@register_reward(
    "cosine",
    extracts="what its accuracy extracts, and the length",
    returns="1 to 0.5, or -1 to -0.5",
    boxed_as=None,
)
class CosineReward:
    """A right answer earns 1 at length 0, falling to 0.5 at ``maximum``; a wrong one -1, rising to -0.5.

    ``end + (start - end) * (1 + cos(pi * length / maximum)) / 2``: the cosine length-scaling reward of Yeo et al. 2025,
    "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv:2502.03373. Of two right answers the shorter is
    better; of two wrong ones the longer, which had looked further. Beyond ``maximum`` the value is ``beyond``, or that
    at ``maximum``.

    Args:
        maximum: the length at which the curve ends.
        accuracy: the reward that says what is right, with ``fn`` and its options; default: that of the data set.
        right_from: the accuracy from which an answer is right.
        right: value at length 0 and at ``maximum`` of a right answer.
        wrong: the same of a wrong one.
        beyond: value of longer completions, right or wrong.
        unit: ``tokens`` or ``characters``.
        dataset: the data set of the run.
    """

    def __init__(
        self,
        maximum: int,
        accuracy: Mapping[str, Any] | None = None,
        right_from: float = 0.5,
        right: Sequence[float] = (1.0, 0.5),
        wrong: Sequence[float] = (-1.0, -0.5),
        beyond: float | None = None,
        unit: str = "tokens",
        dataset: str | None = None,
    ) -> None:
        self.maximum = check_whole_number("cosine", "maximum", maximum, 1)
        check_choice("cosine", "unit", unit, UNITS)
        if accuracy is not None and not isinstance(accuracy, Mapping):
            raise ConfigError(f"accuracy={accuracy!r} of reward 'cosine' is not a mapping, for example {{fn: math}}")
        options = dict(accuracy or {})
        self.part = RewardPart("cosine", "reward.kwargs.accuracy", options.pop("fn", None), dataset, options)
        self.right_from = check_number("cosine", "right_from", right_from)
        self.right = _ends("right", right)
        self.wrong = _ends("wrong", wrong)
        self.beyond = None if beyond is None else check_number("cosine", "beyond", beyond)
        self.unit = unit
        kind = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter("completions", kind), inspect.Parameter("completion_ids", kind, default=None)]
        self.__signature__ = merged_signature([self.part], own)

    def __call__(
        self, completions: str, completion_ids: Sequence[int] | None = None, **sample: Any
    ) -> RewardResult | None:
        """Score one completion; ``accuracy`` and ``length`` are parts. None: the accuracy does not apply.

        Raises:
            RewardError: the accuracy returned something that is no reward.
            ValueError: tokens are to be counted, and there are none.
        """
        length = completion_length(self.unit, completions, completion_ids)
        result = self.part.score({**sample, "completions": completions, "completion_ids": completion_ids})
        if result is None or result.value is None:
            return None
        parts = {"accuracy": result.value, "length": float(length)}
        if length > self.maximum and self.beyond is not None:
            return RewardResult(self.beyond, parts=parts, metadata={**result.metadata, "reason": "overlong"})
        start, end = self.right if result.value >= self.right_from else self.wrong
        share = (1.0 + math.cos(math.pi * min(1.0, length / self.maximum))) / 2.0
        return RewardResult(end + (start - end) * share, parts=parts, metadata=result.metadata)


def _ends(option: str, values: Any) -> tuple[float, float]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 2:
        raise ConfigError(f"{option}={values!r} of reward 'cosine' is not a pair of numbers: at length 0, at maximum")
    start, end = (check_number("cosine", option, value) for value in values)
    return start, end
