"""Rewards for OpenRLHF: ``reward_func(queries, prompts, labels)`` with lists, which returns lists or tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from areal_x.api.reward_records import RewardSample
from areal_x.reward.adapters.calling import Adapter, Call
from areal_x.reward.adapters.columns import check_label_key, label_of
from areal_x.reward.adapters.library_function import LibraryFunction
from areal_x.reward.adapters.results import Reward, make_reward_result, one_for_each, plain, to_number

__all__ = ["OpenRLHFAdapter"]

_NUM_POSITIONAL = 3


class OpenRLHFAdapter(Adapter):
    """OpenRLHF's call. Options: ``group`` (lists of a whole group, else of one), ``label_key``; others go by name."""

    default_function: ClassVar[str | None] = "reward_func"

    def __init__(self, function: LibraryFunction, options: dict[str, Any], dataset: str | None) -> None:
        super().__init__(function, options, dataset)
        self._label_key: str | None = options.pop("label_key", None)
        function.check_options(options, _NUM_POSITIONAL)
        self._options = options

    def call(self, samples: list[RewardSample]) -> Call:
        """``(queries, prompts, labels)``. A query is the prompt and the response in one text; no label is ``""``."""
        prompts = [sample.prompt for sample in samples]
        queries = [sample.prompt + sample.completion for sample in samples]
        labels = []
        for sample in samples:
            used, label = label_of(sample.data, self._label_key, ("label", "answer"))
            labels.append("" if used is None else label)
        return Call(functools.partial(self._read, len(samples)), (queries, prompts, labels), dict(self._options))

    def check_columns(self, columns: frozenset[str]) -> None:
        """The label's column exists, if it was named."""
        check_label_key(columns, self._label_key)

    def _read(self, num_samples: int, returned: Any) -> list[Reward]:
        name = self.function.name
        if not isinstance(returned, Mapping):  # Older releases took the rewards alone.
            return [*self._numbers(returned, num_samples, f"what {name} returned")]
        if "rewards" not in returned:
            raise KeyError(f"{name} returned a dict without 'rewards'; its keys: {', '.join(map(repr, returned))}")
        rewards = self._numbers(returned["rewards"], num_samples, f"'rewards' of {name}")
        extras: dict[str, list[Any]] = {
            key: _spread(values, num_samples, f"extra_logs[{key!r}] of {name}")
            for key, values in (returned.get("extra_logs") or {}).items()
        }
        if returned.get("scores") is not None:
            extras["scores"] = [*self._numbers(returned["scores"], num_samples, f"'scores' of {name}")]
        return [
            make_reward_result(reward, {key: values[index] for key, values in extras.items()})
            for index, reward in enumerate(rewards)
        ]

    @staticmethod
    def _numbers(values: Any, num_samples: int, what: str) -> list[float]:
        values = plain(values)
        if num_samples == 1 and not isinstance(values, Sequence):
            values = [values]
        return [to_number(value, what) for value in one_for_each(values, num_samples, what)]


def _spread(values: Any, num_samples: int, what: str) -> list[Any]:
    """A list with one for each sample as it is; a single value for all of them."""
    values = plain(values)
    if isinstance(values, list | tuple):
        return one_for_each(values, num_samples, what)
    return [values] * num_samples
