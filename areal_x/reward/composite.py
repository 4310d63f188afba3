"""A weighted sum of rewards in one call, each logged apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_arguments import RewardArguments, innermost
from areal_x.api.reward_records import DEFAULT_REWARD_KEY, RewardError, RewardResult, check_reward
from areal_x.reward.options import check_number
from areal_x.reward.registry import get_reward_fn, register_reward

__all__ = ["CompositeReward"]


@register_reward("composite", extracts="what its parts extract", returns="their weighted sum; each is logged")
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
        self.parts = [_Part(str(label), spec, dataset) for label, spec in parts.items()]
        self.__signature__ = _signature(self.parts)

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


class _Part:
    def __init__(self, label: str, spec: Any, dataset: str | None) -> None:
        options = dict(spec) if isinstance(spec, Mapping) else {"weight": spec}
        self.label = label
        place = f"reward.kwargs.parts.{label}"
        self.weight = check_number("composite", f"parts.{label}.weight", options.pop("weight", 1.0))
        self.reward_key = options.pop("reward_key", DEFAULT_REWARD_KEY)
        if not isinstance(self.reward_key, str):
            raise ConfigError(f"{place}.reward_key={self.reward_key!r} is not the name of a key")
        fn = options.pop("fn", None if label == "accuracy" else label)
        if fn is not None and not isinstance(fn, str):
            raise ConfigError(f"{place}.fn={fn!r} is not the name of a reward")
        try:
            self.function = get_reward_fn(fn, dataset=dataset, **options)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{place}: {error}") from error
        inner = innermost(self.function)
        kind = "a reward of groups" if getattr(inner, "is_group_reward", False) else None
        if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__):
            kind = "asynchronous"
        if kind is not None:
            raise ConfigError(
                f"{place} is {kind}; 'composite' takes neither: name the parts under reward.rewards instead"
            )
        self.arguments = RewardArguments.of(self.function, repr(label))
        self.parameters = {
            name: parameter
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and name not in self.arguments.bound
        }

    def score(self, sample: dict[str, Any]) -> RewardResult | None:
        returned = self.function(**self.arguments.select(dict(sample)))
        try:
            result = check_reward(returned, self.reward_key, None)
        except RewardError as error:
            raise RewardError(f"part {self.label!r} of the composite reward: {error}") from error
        if result is not None and (result.token_rewards is not None or result.step_rewards is not None):
            raise RewardError(
                f"part {self.label!r} of the composite reward returned rewards of tokens or steps, which cannot be "
                "added up with those of other parts; return one number"
            )
        return result


def _signature(parts: list[_Part]) -> inspect.Signature:
    """All arguments that a part takes, so that nothing else is sent to the worker."""
    merged: dict[str, inspect.Parameter] = {}
    for part in parts:
        for name, parameter in part.parameters.items():
            old = merged.get(name)
            if old is None or old.default is not old.empty:
                merged[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    if any(part.arguments.accepted is None for part in parts):
        merged["sample"] = inspect.Parameter("sample", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature(list(merged.values()))
