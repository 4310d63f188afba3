"""Reads what functions for other libraries return. Those libraries take ``True`` for 1.0, so bools are numbers here."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from areal_x.api.reward_records import RewardResult

__all__ = ["Reward", "make_reward_result", "one_for_each", "plain", "read_reward", "split_extras", "to_number"]


Reward = float | Mapping[str, Any] | RewardResult | None
"""What an adapted reward may return for one sample."""


def plain(value: Any) -> Any:
    """Tensors, arrays and their scalars as Python lists and numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def to_number(value: Any, what: str) -> float:
    """A number, ``True`` and ``False`` included. (Whether it is finite is checked with all rewards.)

    Raises:
        TypeError: it is none.
    """
    value = plain(value)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{what} is a {type(value).__name__} ({repr(value)[:80]}), expected a number")
    return float(value)


def one_for_each(values: Any, num_samples: int, what: str) -> list[Any]:
    """A list, tuple, array or tensor with one entry for each sample, as a list.

    Raises:
        TypeError: it is none of these.
        ValueError: it has another number of entries.
    """
    values = plain(values)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{what} is a {type(values).__name__}, expected a list of {num_samples} (one for each sample)")
    if len(values) != num_samples:
        raise ValueError(f"{what} has {len(values)} entries for {num_samples} samples; return one for each, in order")
    return list(values)


def split_extras(extras: Mapping[Any, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Finite numbers and bools become parts, the rest metadata."""
    parts: dict[str, float] = {}
    metadata: dict[str, Any] = {}
    for key, value in extras.items():
        value = plain(value)
        if isinstance(value, numbers.Real) and math.isfinite(value):
            parts[str(key)] = float(value)
        else:
            metadata[str(key)] = value
    return parts, metadata


def make_reward_result(value: float, extras: Mapping[Any, Any]) -> float | RewardResult:
    """A reward with its extras; a float where there are none, which travels faster between processes."""
    if not extras:
        return value
    parts, metadata = split_extras(extras)
    return RewardResult(value, parts, metadata=metadata)


def read_reward(returned: Any, key: str | None, what: str) -> Reward:
    """One sample's reward: a number, or a dict with the reward under ``key``. None stays None (does not apply).

    The reward is among the parts, too, so that ``reward.eval_reward_key`` can name it. Without ``key`` a dict goes on
    as it is, with numbers for bools, so that ``reward.reward_key`` chooses.

    Raises:
        TypeError: neither a number nor a dict.
        KeyError: a dict without ``key``.
    """
    if returned is None or isinstance(returned, RewardResult):
        return returned
    if not isinstance(returned, Mapping):
        return make_reward_result(to_number(returned, what), {})
    if key is None:
        parts, metadata = split_extras(returned)
        return {**parts, **metadata}
    if key not in returned:
        keys = ", ".join(repr(name) for name in list(returned)[:20]) or "none"
        raise KeyError(f"{what} is a dict without {key!r}; its keys: {keys}")
    return make_reward_result(to_number(returned[key], f"{what}[{key!r}]"), returned)
