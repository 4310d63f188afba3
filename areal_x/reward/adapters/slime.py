"""Rewards for slime: ``custom_rm(args, sample)``, or ``custom_rm(args, samples)`` for a group; its hook for batches."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardSample, ScoredSample
from areal_x.reward.adapters.calling import Adapter, Call
from areal_x.reward.adapters.columns import check_label_key, label_of
from areal_x.reward.adapters.library_function import LibraryFunction
from areal_x.reward.adapters.results import Reward, one_for_each, read_reward, to_number
from areal_x.reward.adapters.slime_stand_in import sample_class

__all__ = ["SlimeAdapter", "SlimeArgs", "SlimePostProcess"]

_DEFAULT_LABELS = ("label", "answer")


class SlimeArgs(argparse.Namespace):
    """slime's ``args``: what ``reward.kwargs`` holds, as attributes."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"args.{name} is not set; put {name} into reward.kwargs")


def _make_args(function: LibraryFunction, is_group: bool, options: Mapping[str, Any]) -> SlimeArgs:
    defaults = {"custom_rm_path": function.name.partition(":")[2], "group_rm": is_group}
    return SlimeArgs(**{**defaults, "reward_key": None, "eval_reward_key": None, **options})


def _make_sample(sample: RewardSample, label_key: str | None, **more: Any) -> Any:
    """slime's Sample of a ``RewardSample``. Columns other than the label are in ``metadata``."""
    cls = sample_class()
    used, label = label_of(sample.data, label_key, _DEFAULT_LABELS)
    metadata = {key: value for key, value in sample.data.items() if key not in (used, "metadata")}
    own = sample.data.get("metadata")
    if isinstance(own, Mapping):
        metadata.update(own)
    return cls(
        prompt=sample.prompt,
        tokens=[*sample.prompt_ids, *sample.completion_ids],
        response=sample.completion,
        response_length=len(sample.completion_ids),
        label=label,
        status=cls.Status.TRUNCATED if sample.truncated else cls.Status.COMPLETED,
        metadata=metadata,
        **more,
    )


class SlimeAdapter(Adapter):
    """slime's call. Options: ``group`` (its ``--group-rm``), ``label_key``, ``reward_key``; all others are ``args``."""

    def __init__(self, function: LibraryFunction, options: dict[str, Any], dataset: str | None) -> None:
        super().__init__(function, options, dataset)
        self.args = _make_args(function, self.is_group, options)
        self._label_key: str | None = options.get("label_key")
        self._reward_key: str | None = options.get("reward_key")

    def call(self, samples: list[RewardSample]) -> Call:
        """``(args, sample)``, or ``(args, samples)`` for a group."""
        theirs = [
            _make_sample(sample, self._label_key, index=index if self.is_group else None)
            for index, sample in enumerate(samples)
        ]
        return Call(functools.partial(self._read, len(samples)), (self.args, theirs if self.is_group else theirs[0]))

    def check_columns(self, columns: frozenset[str]) -> None:
        """The label's column exists, if it was named."""
        check_label_key(columns, self._label_key)

    def _read(self, num_samples: int, returned: Any) -> list[Reward]:
        what = f"what {self.function.name} returned"
        if not self.is_group:
            return [read_reward(returned, self._reward_key, what)]
        rewards = one_for_each(returned, num_samples, what)
        return [read_reward(reward, self._reward_key, f"{what}, [{index}],") for index, reward in enumerate(rewards)]


class SlimePostProcess:
    """slime's ``(args, samples) -> (raw, processed)`` for the rewards of a batch.

    Raises:
        ConfigError: it is a coroutine function, which slime does not await here either.
    """

    def __init__(self, function: LibraryFunction, options: dict[str, Any]) -> None:
        if function.is_async:
            raise ConfigError(f"{function.name} is an async def; slime calls this hook without await: make it a def")
        self._function = function
        self._args = _make_args(function, options.pop("group", False), options)
        self._label_key: str | None = options.get("label_key")

    def __call__(self, samples: Sequence[ScoredSample]) -> tuple[list[float], list[float]]:
        """Raw and processed rewards, one of each for every sample.

        Raises:
            TypeError: the hook returned something else than two lists of numbers.
            ValueError: it returned another number of rewards.
        """
        group_indices: dict[Any, int] = {}
        theirs = []
        for index, sample in enumerate(samples):
            group_index = group_indices.setdefault(sample.group_id, len(group_indices))
            key = self._args.reward_key
            reward = {**sample.parts, key: sample.reward} if key else sample.reward
            theirs.append(_make_sample(sample, self._label_key, index=index, group_index=group_index, reward=reward))
        name = self._function.name
        returned = self._function.function(self._args, theirs)
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise TypeError(f"{name} returned a {type(returned).__name__}, expected (raw_rewards, processed_rewards)")
        raw, processed = (
            [to_number(value, f"{what} of {name}") for value in one_for_each(values, len(theirs), f"{what} of {name}")]
            for what, values in zip(("raw_rewards", "processed_rewards"), returned, strict=True)
        )
        return raw, processed
