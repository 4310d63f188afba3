"""A reward inside of another reward: found by name, called with what it takes, its result checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_arguments import RewardArguments, innermost, is_async
from areal_x.api.reward_records import DEFAULT_REWARD_KEY, RewardError, RewardResult, check_reward
from areal_x.reward.registry import get_reward_fn

__all__ = ["RewardPart", "merged_signature"]


class RewardPart:
    """A synchronous reward of one sample, as a part of another reward.

    Args:
        owner: name of the other reward, for messages.
        place: the configuration key of this part, for messages.
        fn: a name as ``reward.fn`` takes it; None: the reward of ``dataset``.
        dataset: the data set of the run.
        options: ``reward_key`` (where the reward is in a dict) and options of the reward.

    Raises:
        ConfigError: no such reward, a wrong option, or a reward that is asynchronous or scores whole groups.
    """

    def __init__(self, owner: str, place: str, fn: Any, dataset: str | None, options: dict[str, Any]) -> None:
        options = dict(options)
        self.owner = owner
        self.place = place
        self.reward_key = options.pop("reward_key", DEFAULT_REWARD_KEY)
        if not isinstance(self.reward_key, str):
            raise ConfigError(f"{place}.reward_key={self.reward_key!r} is not the name of a key")
        if fn is not None and not isinstance(fn, str):
            raise ConfigError(f"{place}.fn={fn!r} is not the name of a reward")
        try:
            self.function = get_reward_fn(fn, dataset=dataset, **options)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{place}: {error}") from error
        inner = innermost(self.function)
        kind = "a reward of groups" if getattr(inner, "is_group_reward", False) else None
        if is_async(inner):
            kind = "asynchronous"
        if kind is not None:
            raise ConfigError(
                f"{place} is {kind}; {owner!r} takes neither: name the parts under reward.rewards instead"
            )
        self.arguments = RewardArguments.of(self.function, repr(place))
        self.parameters = {
            name: parameter
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and name not in self.arguments.bound
        }

    def score(self, sample: dict[str, Any]) -> RewardResult | None:
        """The part's checked result; None: it does not apply.

        Raises:
            RewardError: it returned something that is no reward, or rewards of tokens or steps.
        """
        returned = self.function(**self.arguments.select(dict(sample)))
        try:
            result = check_reward(returned, self.reward_key, None)
        except RewardError as error:
            raise RewardError(f"{self.place} of reward {self.owner!r}: {error}") from error
        if result is not None and (result.token_rewards is not None or result.step_rewards is not None):
            raise RewardError(
                f"{self.place} of reward {self.owner!r} returned rewards of tokens or steps, which cannot be added up "
                "with those of other parts; return one number"
            )
        return result


def merged_signature(parts: Iterable[RewardPart], own: Iterable[inspect.Parameter] = ()) -> inspect.Signature:
    """All arguments that a part takes, and ``own`` ones, so that nothing else is sent to the worker."""
    parts = list(parts)
    merged = {parameter.name: parameter for parameter in own}
    for part in parts:
        for name, parameter in part.parameters.items():
            old = merged.get(name)
            if old is None or old.default is not old.empty:
                merged[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    if any(part.arguments.accepted is None for part in parts):
        merged["sample"] = inspect.Parameter("sample", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature(list(merged.values()))
