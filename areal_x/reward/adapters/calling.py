"""Runs a user's function through the adapter of its library: one sample or one group, plain or asynchronous.

Whether a reward is a coroutine function and whether it scores groups are facts of its type, hence four small classes.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardSample
from areal_x.reward.adapters.library_function import LibraryFunction
from areal_x.reward.adapters.results import Reward

__all__ = ["Adapter", "AsyncGroupReward", "AsyncSampleReward", "Call", "GroupReward", "SampleReward", "make_reward"]


@dataclass(slots=True)
class Call:
    """Arguments of one call, and the reading of what it returns: one reward for each sample, in their order."""

    read: Callable[[Any], list[Reward]]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Adapter(ABC):
    """One library's way to call a reward function.

    Args:
        function: the user's.
        options: ``reward.kwargs``.
        dataset: name of the run's data set, if it has one.
    """

    default_function: ClassVar[str | None] = None
    """What a spec names that is a file alone."""

    is_group: bool = False
    """Whether a call scores all samples of one prompt."""

    def __init__(self, function: LibraryFunction, options: dict[str, Any], dataset: str | None) -> None:
        self.function = function
        self.is_group = self.take_flag(options, "group", type(self).is_group)

    @classmethod  # noqa: B027 - most libraries have nothing to refuse
    def check_spec(cls, spec: str) -> None:
        """Refuse what the library would take by that name and areal_x does not."""

    @abstractmethod
    def call(self, samples: list[RewardSample]) -> Call:
        """The call that scores ``samples``: all of one prompt if ``is_group``, else one."""

    @abstractmethod
    def check_columns(self, columns: frozenset[str]) -> None:
        """Check the data's columns before a run.

        Raises:
            DataError: one is missing, or has the name of an argument.
        """

    def explain(self, error: TypeError) -> None:  # noqa: B027 - most libraries have nothing to add
        """Add to the message of an error of the function what may have caused it."""

    def take_flag(self, options: dict[str, Any], key: str, default: bool) -> bool:
        """Take a true-or-false option of the adapter out of ``options``.

        Raises:
            ConfigError: it is neither.
        """
        value = options.pop(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"reward.kwargs.{key}={value!r} of {self.function.name} must be true or false")
        return value


class _AdaptedReward:
    """A reward that pickles as the call that makes it, so that its module is imported where it arrives."""

    def __init__(self, adapter: Adapter, origin: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        self.adapter = adapter
        self.__qualname__ = adapter.function.name
        self._origin = origin

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._origin

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.adapter.function.name})"

    def check_columns(self, columns: frozenset[str]) -> None:
        """Check the data's columns before a run; raises ``DataError``."""
        self.adapter.check_columns(columns)

    def _sample(
        self,
        prompt: str,
        completion: Any,
        prompt_ids: list[int] | None,
        completion_ids: list[int] | None,
        truncated: bool,
        data: dict[str, Any],
    ) -> list[RewardSample]:
        if not isinstance(completion, str):
            name = self.adapter.function.name
            raise TypeError(f"{name} scores single samples and got a group; set reward.kwargs.group=true instead")
        return [RewardSample(prompt, completion, prompt_ids or [], completion_ids or [], data, truncated)]

    def _run(self, samples: list[RewardSample]) -> list[Reward]:
        call = self.adapter.call(samples)
        try:
            returned = self.adapter.function.function(*call.args, **call.kwargs)
        except TypeError as error:
            self.adapter.explain(error)
            raise
        if inspect.iscoroutine(returned):
            returned.close()
            raise TypeError(f"{self.adapter.function.name} is a plain def and returned a coroutine; make it async def")
        return call.read(returned)

    async def _await(self, samples: list[RewardSample]) -> list[Reward]:
        call = self.adapter.call(samples)
        try:
            returned = await self.adapter.function.function(*call.args, **call.kwargs)
        except TypeError as error:
            self.adapter.explain(error)
            raise
        return call.read(returned)


class SampleReward(_AdaptedReward):
    """A plain function that is called for each sample."""

    def __call__(
        self,
        prompt: str,
        completions: str,
        prompt_ids: list[int] | None = None,
        completion_ids: list[int] | None = None,
        truncated: bool = False,
        **data: Any,
    ) -> Reward:
        """The reward of one completion; arguments as of any reward."""
        return self._run(self._sample(prompt, completions, prompt_ids, completion_ids, truncated, data))[0]


class AsyncSampleReward(_AdaptedReward):
    """A coroutine function that is called for each sample."""

    async def __call__(
        self,
        prompt: str,
        completions: str,
        prompt_ids: list[int] | None = None,
        completion_ids: list[int] | None = None,
        truncated: bool = False,
        **data: Any,
    ) -> Reward:
        """The reward of one completion; arguments as of any reward."""
        return (await self._await(self._sample(prompt, completions, prompt_ids, completion_ids, truncated, data)))[0]


class GroupReward(_AdaptedReward):
    """A plain function that is called once with all samples of one prompt."""

    is_group_reward = True

    def __call__(self, samples: list[RewardSample]) -> list[Reward]:
        """The rewards of a group, in the order of its samples."""
        return self._run(samples)


class AsyncGroupReward(_AdaptedReward):
    """A coroutine function that is called once with all samples of one prompt."""

    is_group_reward = True

    async def __call__(self, samples: list[RewardSample]) -> list[Reward]:
        """The rewards of a group, in the order of its samples."""
        return await self._await(samples)


def make_reward(adapter: Adapter, rebuild: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """The reward that runs ``adapter``'s function; another process gets it by ``rebuild(*arguments)``."""
    classes: dict[tuple[bool, bool], Callable[..., Callable[..., Any]]] = {
        (False, False): SampleReward,
        (False, True): AsyncSampleReward,
        (True, False): GroupReward,
        (True, True): AsyncGroupReward,
    }
    return classes[adapter.is_group, adapter.function.is_async](adapter, (rebuild, arguments))
