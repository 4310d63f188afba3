"""A weighted sum of rewards in one call, each logged apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardResult
from areal_x.reward.options import check_number
from areal_x.reward.parts import RewardPart, merged_signature
from areal_x.reward.registry import register_reward

__all__ = ["CompositeReward"]


@register_reward(
    "composite", extracts="what its parts extract", returns="their weighted sum; each is logged", boxed_as=None
)
class CompositeReward:
    """The weighted sum of other rewards; ``parts`` of its result hold each one's own, unweighted value.

    All parts run one after the other in one call of one worker. A part that does not apply (None) is left out of the
    sum; when none applies, neither does the composite. Asynchronous rewards and rewards of groups are no parts:
    ``reward.rewards`` of the configuration adds rewards of any kind.

    Args:
        parts: for each part its label and either its weight or a mapping of ``weight`` (default 1; 0 logs only),
            ``fn``, ``reward_key`` (where the reward is in a dict, default ``reward``) and further options of the
            part's reward. Without ``fn``, the part ``accuracy`` is the reward of the data set and every other part the
            reward of that name::

                fn: composite
                kwargs:
                  parts:
                    format: {weight: 0.2, answer: marked}
                    accuracy: 0.8

        dataset: the data set of the run.
    """

    def __init__(self, parts: Mapping[str, Any], dataset: str | None = None) -> None:
        if not isinstance(parts, Mapping) or not parts:
            raise ConfigError("reward 'composite' needs parts, for example {format: 0.2, accuracy: 0.8}")
        self.parts = [_WeightedPart(str(label), spec, dataset) for label, spec in parts.items()]
        self.__signature__ = merged_signature(self.parts)

    def __call__(self, **sample: Any) -> RewardResult | None:
        """Score one sample with every part.

        Raises:
            RewardError: a part returned something that is no reward, or rewards of tokens or steps.
        """
        total = 0.0
        values: dict[str, float] = {}
        metadata: dict[str, Any] = {}
        applies = False
        for part in self.parts:
            result = part.score(sample)
            if result is None or result.value is None:
                continue
            applies = True
            total += part.weight * result.value
            values[part.label] = result.value
            values.update({f"{part.label}/{name}": value for name, value in result.parts.items()})
            for key, value in result.metadata.items():
                metadata[key if key not in metadata else f"{part.label}/{key}"] = value
        return RewardResult(total, parts=values, metadata=metadata) if applies else None


class _WeightedPart(RewardPart):
    def __init__(self, label: str, spec: Any, dataset: str | None) -> None:
        options = dict(spec) if isinstance(spec, Mapping) else {"weight": spec}
        self.label = label
        self.weight = check_number("composite", f"parts.{label}.weight", options.pop("weight", 1.0))
        fn = options.pop("fn", None if label == "accuracy" else label)
        super().__init__("composite", f"reward.kwargs.parts.{label}", fn, dataset, options)
