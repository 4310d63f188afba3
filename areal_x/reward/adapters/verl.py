"""Rewards for verl: ``compute_score(data_source, solution_str, ground_truth, extra_info)``, or its form for batches."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from areal_x.api.errors import DataError
from areal_x.api.reward_records import RewardSample
from areal_x.reward.adapters.calling import Adapter, Call
from areal_x.reward.adapters.columns import check_label_key, label_of
from areal_x.reward.adapters.library_function import LibraryFunction
from areal_x.reward.adapters.results import Reward, one_for_each, read_reward

__all__ = ["VerlAdapter"]

_SCORE = "score"
_GOLD = ("ground_truth", "answer")
_NO_GOLD = (
    "the data has none of the columns reward_model (with ground_truth), ground_truth and answer; "
    "set reward.kwargs.label_key"
)


class VerlAdapter(Adapter):
    """verl's call. Options: ``group`` (the batch manager's form), ``label_key``; others override arguments by name."""

    default_function: ClassVar[str | None] = "compute_score"

    def __init__(self, function: LibraryFunction, options: dict[str, Any], dataset: str | None) -> None:
        super().__init__(function, options, dataset)
        self._dataset = dataset
        self._label_key: str | None = options.pop("label_key", None)
        function.check_options(options)
        self._options = options

    def call(self, samples: list[RewardSample]) -> Call:
        """One sample's arguments; for a group their plurals, as lists."""
        each = [self._arguments(sample) for sample in samples]
        arguments = {f"{name}s": [one[name] for one in each] for name in each[0]} if self.is_group else each[0]
        kwargs = self.function.taken({**arguments, **self._options})
        return Call(functools.partial(self._read, len(samples)), (), kwargs)

    def check_columns(self, columns: frozenset[str]) -> None:
        """There is a data source and a gold answer."""
        self._check_data_source(columns)
        check_label_key(columns, self._label_key)
        if self._label_key is None and not {"reward_model", *_GOLD} & columns and not self._gives("ground_truth"):
            raise DataError(_NO_GOLD)

    def _check_data_source(self, columns: Collection[str]) -> None:
        if self._dataset is None and "data_source" not in columns and not self._gives("data_source"):
            raise DataError("the data has no column 'data_source'; set reward.kwargs.data_source or data.name")

    def _gives(self, name: str) -> bool:
        return name in self._options or f"{name}s" in self._options

    def _arguments(self, sample: RewardSample) -> dict[str, Any]:
        self._check_data_source(sample.data)
        extra_info = sample.data.get("extra_info")
        return {
            "data_source": sample.data.get("data_source", self._dataset),
            "solution_str": sample.completion,
            "ground_truth": self._ground_truth(sample.data),
            "extra_info": dict(extra_info) if isinstance(extra_info, Mapping) else {},
        }

    def _ground_truth(self, data: Mapping[str, Any]) -> Any:
        nested = data.get("reward_model")
        if self._label_key is None and isinstance(nested, Mapping) and "ground_truth" in nested:
            return nested["ground_truth"]
        used, value = label_of(data, self._label_key, _GOLD)
        if used is None and not self._gives("ground_truth"):
            raise DataError(_NO_GOLD)
        return value

    def _read(self, num_samples: int, returned: Any) -> list[Reward]:
        what = f"what {self.function.name} returned"
        if not self.is_group:
            return [read_reward(returned, _SCORE, what)]
        scores = one_for_each(returned, num_samples, what)
        return [read_reward(score, _SCORE, f"{what}, [{index}],") for index, score in enumerate(scores)]
