"""Rewards for TRL: ``fn(prompts, completions, completion_ids, **columns)`` with lists over a group of completions."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardResult, RewardSample
from areal_x.reward.adapters.calling import Adapter, Call
from areal_x.reward.adapters.columns import refuse_shadowed
from areal_x.reward.adapters.library_function import LibraryFunction
from areal_x.reward.adapters.results import Reward, one_for_each, split_extras, to_number

__all__ = ["TRLAdapter", "TrainerState"]

_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_MODEL = "a reward model, and those run in the training loop, on whole batches, not as a reward function"


class TrainerState(argparse.Namespace):
    """TRL's ``trainer_state``: what ``reward.kwargs.trainer_state`` holds, as attributes."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"trainer_state.{name} is not known to a reward; set reward.kwargs.trainer_state={{{name}: ...}}"
        )


class TRLAdapter(Adapter):
    """TRL's call. Options: ``group`` (default true), ``conversational``, ``trainer_state``; others go by name."""

    is_group = True

    @classmethod
    def check_spec(cls, spec: str) -> None:
        """TRL also takes the name of a reward model; here it is none of a reward function's business."""
        if "/" in spec and ".py" not in spec:
            raise ConfigError(f"reward.fn={'trl:' + spec!r} names {_MODEL}; write trl:package.module.function")

    def __init__(self, function: LibraryFunction, options: dict[str, Any], dataset: str | None) -> None:
        super().__init__(function, options, dataset)
        if hasattr(function.function, "forward") and hasattr(function.function, "parameters"):
            raise ConfigError(f"reward.fn={function.name!r} is {_MODEL}; write trl:package.module.function")
        self._conversational = self.take_flag(options, "conversational", False)
        state = options.pop("trainer_state", {})
        if not isinstance(state, Mapping):
            raise ConfigError(f"reward.kwargs.trainer_state={state!r} must be a mapping, such as {{global_step: 0}}")
        self._state = TrainerState(**state)
        function.check_options(options)
        self._options = options

    def call(self, samples: list[RewardSample]) -> Call:
        """All by name; every column is a list with one entry for each completion."""
        logged = _Logged(len(samples), self.function.name)
        own: dict[str, Any] = {
            "prompts": [self._messages("user", sample.prompt) for sample in samples],
            "completions": [self._messages("assistant", sample.completion) for sample in samples],
            "completion_ids": [sample.completion_ids for sample in samples],
            "trainer_state": self._state,
            "log_extra": logged.log_extra,
            "log_metric": logged.log_metric,
        }
        columns = {key: [sample.data[key] for sample in samples] for key in samples[0].data}
        refuse_shadowed(columns, _ARGUMENTS, self.function.name)
        return Call(logged.read, (), self.function.taken({**own, **columns, **self._options}))

    def explain(self, error: TypeError) -> None:
        """A function that was written for messages gets plain texts unless it says so."""
        if not self._conversational and "string indices must be integers" in str(error):
            hint = "if it wants messages, [{role: ..., content: ...}], set reward.kwargs.conversational=true"
            error.args = (f"{error}; {hint}",)

    def check_columns(self, columns: frozenset[str]) -> None:
        """Arguments that TRL does not give are columns, and no column has the name of one that it gives."""
        refuse_shadowed(columns, _ARGUMENTS, self.function.name)
        self.function.check_columns(columns, {*_ARGUMENTS, *self._options})

    def _messages(self, role: str, text: str) -> str | list[dict[str, str]]:
        return [{"role": role, "content": text}] if self._conversational else text


class _Logged:
    """What a function logs in one call: metrics become parts of each sample, extra columns its metadata."""

    def __init__(self, num_samples: int, name: str) -> None:
        self._num_samples = num_samples
        self._name = name
        self._metrics: dict[str, list[float]] = {}
        self._extras: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: Any) -> None:
        """A number about the whole call; logged twice, it is averaged."""
        self._metrics.setdefault(name, []).append(to_number(value, f"log_metric({name!r}) of {self._name}"))

    def log_extra(self, column: str, values: Any) -> None:
        """One value for each completion."""
        self._extras[column] = one_for_each(values, self._num_samples, f"log_extra({column!r}) of {self._name}")

    def read(self, returned: Any) -> list[Reward]:
        """The rewards, each with what was logged. None stays None: that sample has no reward of this function."""
        what = f"what {self._name} returned"
        values = one_for_each(returned, self._num_samples, what)
        return [
            None if value is None else self._result(index, to_number(value, f"{what}, [{index}],"))
            for index, value in enumerate(values)
        ]

    def _result(self, index: int, value: float) -> float | RewardResult:
        if not self._metrics and not self._extras:
            return value
        parts, metadata = split_extras({name: statistics.fmean(values) for name, values in self._metrics.items()})
        metadata.update((column, values[index]) for column, values in self._extras.items())
        return RewardResult(value, parts, metadata=metadata)
