"""A weighted sum of rewards, each logged apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_api import RewardResult
from areal_x.reward.registry import get_reward_fn, register_reward

__all__ = ["CompositeReward"]


@register_reward("composite", extracts="what its parts extract", returns="their weighted sum; each is logged")
class CompositeReward:
    """The weighted sum of other rewards; ``parts`` of its result hold each one's own, unweighted value.

    Args:
        parts: for each part its label and either its weight or a mapping of ``weight`` (default 1), ``fn`` and further
            options of the part's reward. Without ``fn``, the part ``accuracy`` is the reward of the data set and every
            other part the reward of that name::

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
        self.parts = [_Part(label, spec, dataset) for label, spec in parts.items()]
        self.__signature__ = _signature(self.parts)

    def __call__(self, **sample: Any) -> RewardResult:
        """Score one sample with every part."""
        total = 0.0
        values: dict[str, float] = {}
        metadata: dict[str, Any] = {}
        for part in self.parts:
            value, inner = part.score(sample)
            total += part.weight * value
            values[part.label] = value
            metadata.update(inner)
        return RewardResult(total, parts=values, metadata=metadata)


def _signature(parts: list[_Part]) -> inspect.Signature:
    """All arguments that a part takes, so that nothing else is sent to the worker."""
    merged: dict[str, inspect.Parameter] = {}
    for part in parts:
        for name, parameter in part.parameters.items():
            old = merged.get(name)
            if old is None or old.default is not old.empty:
                merged[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    if any(part.takes_any for part in parts):
        merged["sample"] = inspect.Parameter("sample", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature(list(merged.values()))


class _Part:
    def __init__(self, label: str, spec: Any, dataset: str | None) -> None:
        options = dict(spec) if isinstance(spec, Mapping) else {"weight": spec}
        self.label = label
        weight = options.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise ConfigError(f"reward.kwargs.parts.{label}: weight={weight!r} is not a number")
        self.weight = float(weight)
        fn = options.pop("fn", None if label == "accuracy" else label)
        self.function: Callable[..., Any] = get_reward_fn(fn, dataset=dataset, **options)
        if inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(type(self.function).__call__):
            raise ConfigError(f"reward.kwargs.parts.{label} is asynchronous; 'composite' takes synchronous rewards")
        parameters = inspect.signature(self.function).parameters
        bound = getattr(self.function, "keywords", {})
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self.parameters = {n: p for n, p in parameters.items() if p.kind in named and n not in bound}

    def score(self, sample: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        arguments = sample if self.takes_any else {name: sample[name] for name in self.parameters if name in sample}
        result = self.function(**arguments)
        if isinstance(result, RewardResult):
            return result.value, result.metadata
        if isinstance(result, bool) or not isinstance(result, Real):
            raise TypeError(f"part {self.label!r} of the composite reward returned {result!r}, not a number")
        return float(result), {}
