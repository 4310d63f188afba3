"""Arguments of reward functions: they go by name, and a function gets only those that it takes."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from areal_x.api.errors import ConfigError, DataError
from areal_x.api.reward_records import RewardSample

__all__ = ["GROUP_ARGUMENTS", "REWARD_ARGUMENTS", "TRUNCATED", "RewardArguments", "innermost", "is_async", "isolated"]

REWARD_ARGUMENTS = ("prompt", "completions", "prompt_ids", "completion_ids")
"""Arguments that every reward function may take, beside the columns of its data item."""
GROUP_ARGUMENTS = ("samples", *REWARD_ARGUMENTS)
"""Arguments that a reward of whole groups may take, beside the columns."""
_TEXTS = ("samples", "completions", "completion_ids")
TRUNCATED = "truncated"
"""Argument that tells whether the completion ended for its length; only for a function that names it."""


def innermost(function: Any) -> Any:
    """The function below any number of ``functools.partial``."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def is_async(function: Any) -> bool:
    """Whether calling it gives something to await: an ``async def``, an object with one as ``__call__``, or a partial
    of either."""
    function = innermost(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def isolated(value: Any) -> Any:
    """An argument that a function may change without changing the data: what a worker process has anyhow."""
    if isinstance(value, list) and value and isinstance(value[0], RewardSample):
        return [replace(sample, data=copy.deepcopy(sample.data)) for sample in value]
    return copy.deepcopy(value) if isinstance(value, list | dict | set) else value


@dataclass(frozen=True, slots=True)
class RewardArguments:
    """What a reward function takes: ``accepted`` names (None: any), those it has ``named`` and those it ``required``
    of them, and those that a partial has ``bound`` already."""

    name: str
    accepted: frozenset[str] | None
    named: frozenset[str]
    required: tuple[str, ...]
    bound: frozenset[str]

    @classmethod
    def of(cls, function: Any, name: str) -> RewardArguments:
        """Inspect ``function``.

        Raises:
            ConfigError: it has no signature, or takes an argument by position only.
        """
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:
            message = f"the arguments of reward {name} cannot be inspected ({error}); wrap it in a def"
            raise ConfigError(message) from error
        bound = _bound_names(function)
        accepted: set[str] = set()
        required: list[str] = []
        takes_any = False
        if any(p.kind is p.VAR_POSITIONAL for p in parameters) and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise ConfigError(f"reward {name} takes *arguments; rewards get arguments by name: name them")
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_any = True
            elif parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
                message = f"reward {name} takes {parameter.name!r} by position only; rewards get arguments by name"
                raise ConfigError(message)
            elif (
                parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
                and parameter.name not in bound
            ):
                accepted.add(parameter.name)
                if parameter.default is parameter.empty:
                    required.append(parameter.name)
        return cls(name, None if takes_any else frozenset(accepted), frozenset(accepted), tuple(required), bound)

    def takes(self, name: str) -> bool:
        """Whether the function takes an argument of that name."""
        return name not in self.bound and (self.accepted is None or name in self.accepted)

    def select(self, values: dict[str, Any]) -> dict[str, Any]:
        """Of ``values``, which may be changed, those that the function takes."""
        if self.accepted is not None:
            return {name: value for name, value in values.items() if name in self.accepted}
        for name in self.bound:
            values.pop(name, None)
        return values

    def of_group(self, samples: Sequence[RewardSample]) -> dict[str, Any]:
        """The arguments of one call for a whole group."""
        values = dict(samples[0].data)
        values["samples"] = list(samples)
        values["prompt"] = samples[0].prompt
        values["completions"] = [sample.completion for sample in samples]
        values["prompt_ids"] = [sample.prompt_ids for sample in samples]
        values["completion_ids"] = [sample.completion_ids for sample in samples]
        if TRUNCATED in self.named:
            values[TRUNCATED] = [sample.truncated for sample in samples]
        return self.select(values)

    def check_columns(self, columns: Iterable[str], reserved: Iterable[str]) -> None:
        """Check the data's columns against the function.

        Raises:
            DataError: a column has the name of a reserved argument, or the function needs one that is not there.
        """
        names = set(columns)
        reserved = set(reserved)
        taken = sorted(names & (reserved | {"self"}))
        if taken:
            raise DataError(f"column {taken[0]!r} of the data has the name of a reward argument; rename or drop it")
        if "completion" in names & self.named and not self.named.intersection(_TEXTS):
            raise DataError(
                f"reward {self.name} takes 'completion', which is a column of this data; what the model wrote comes as "
                "'completions'"
            )
        missing = [name for name in self.required if name not in names and name not in reserved]
        if missing:
            raise DataError(
                f"reward {self.name} needs a column {missing[0]!r}; the data has: {', '.join(sorted(names)) or 'none'}"
            )


def _bound_names(function: Any) -> frozenset[str]:
    bound: set[str] = set()
    while isinstance(function, functools.partial):
        bound.update(function.keywords)
        function = function.func
    return frozenset(bound)
