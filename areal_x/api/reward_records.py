"""Rewards as records: what a reward function may return, and how a call to one ends."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from areal_x.api.errors import ArealXError

__all__ = [
    "RewardCrashError",
    "RewardError",
    "RewardOutcome",
    "RewardResult",
    "RewardStatus",
    "RewardTimeoutError",
    "check_reward",
]

RewardStatus = Literal["ok", "not_applicable", "timeout", "crash", "error"]


class RewardError(ArealXError):
    """A reward function raised, or returned something that is not a reward."""


class RewardTimeoutError(RewardError):
    """A reward function did not return before its deadline; its worker was killed."""


class RewardCrashError(RewardError):
    """The worker that ran a reward function died."""


@dataclass(slots=True)
class RewardResult:
    """A reward with its parts."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    token_rewards: list[float] | None = None
    """One for each token of the completion."""
    step_rewards: list[float] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RewardOutcome:
    """How one scoring call ended. ``value`` is set if and only if ``status`` is ``ok``."""

    status: RewardStatus
    value: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Time of the work itself, queueing excluded."""
    started_at: float = 0.0
    """``time.monotonic()`` at the start of the work."""
    error: str | None = None
    """The traceback or reason of a failure."""
    token_rewards: list[float] | None = None
    """One for each token of the completion, if the reward gave them."""
    step_rewards: list[float] | None = None


def check_reward(returned: Any, reward_key: str, num_completion_tokens: int | None) -> RewardResult | None:
    """What a reward function returned, as a checked record; None stays None (the reward does not apply).

    Args:
        returned: a number (numpy scalars too), a dict, a ``RewardResult`` or None.
        reward_key: key of a dict that holds the reward. Its other numbers become ``parts``, the rest ``metadata``.
        num_completion_tokens: length that ``token_rewards`` must have; None: unknown.

    Raises:
        RewardError: anything else: NaN, infinity, a bool, a string, a list, a dict without the key.
    """
    if type(returned) is float and math.isfinite(returned):
        return RewardResult(returned)
    if returned is None:
        return None
    if isinstance(returned, RewardResult):
        return _check_result(returned, num_completion_tokens)
    if isinstance(returned, Mapping):
        return _check_dict(returned, reward_key)
    return RewardResult(_number(returned, "the reward function returned"))


def _check_dict(returned: Mapping[Any, Any], reward_key: str) -> RewardResult:
    if reward_key not in returned:
        keys = ", ".join(repr(key) for key in list(returned)[:20]) or "none"
        raise RewardError(f"the reward function returned a dict without {reward_key!r}; its keys: {keys}")
    result = RewardResult(_number(returned[reward_key], f"the reward function returned under {reward_key!r}"))
    for key, value in returned.items():
        if key == reward_key:
            continue
        if _is_number(value) and math.isfinite(value):
            result.parts[str(key)] = float(value)
        else:
            result.metadata[str(key)] = value
    return result


def _check_result(returned: RewardResult, num_completion_tokens: int | None) -> RewardResult:
    value = _number(returned.value, "RewardResult.value is")
    parts = {str(name): _number(part, f"RewardResult.parts[{name!r}] is") for name, part in returned.parts.items()}
    tokens = _numbers(returned.token_rewards, "token_rewards")
    if tokens is not None and num_completion_tokens is not None and len(tokens) != num_completion_tokens:
        raise RewardError(
            f"RewardResult.token_rewards has {len(tokens)} numbers, the completion has {num_completion_tokens} tokens"
        )
    return RewardResult(value, parts, tokens, _numbers(returned.step_rewards, "step_rewards"), dict(returned.metadata))


def _numbers(values: Any, name: str) -> list[float] | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple | np.ndarray):
        raise RewardError(f"RewardResult.{name} is a {type(values).__name__}, expected a list of numbers")
    return [_number(value, f"RewardResult.{name}[{index}] is") for index, value in enumerate(values)]


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _number(value: Any, what: str) -> float:
    if not _is_number(value):
        shown = repr(value)
        hint = "; return 1.0 or 0.0" if isinstance(value, bool | np.bool_) else ""
        raise RewardError(f"{what} a {type(value).__name__} ({shown[:80]}), expected a number{hint}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RewardError(f"{what} {number}, expected a finite number")
    return number
