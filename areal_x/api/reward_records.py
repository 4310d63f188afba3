"""Rewards as records: what a reward function may return, and how a call to one ends."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypeVar

import numpy as np

from areal_x.api.errors import ArealXError

__all__ = [
    "DEFAULT_REWARD_KEY",
    "LARGEST_REWARD",
    "RewardCrashError",
    "RewardError",
    "RewardOutcome",
    "RewardResult",
    "RewardSample",
    "RewardStatus",
    "RewardTimeoutError",
    "ScoredSample",
    "check_reward",
    "finite_number",
    "group_reward",
]

RewardStatus = Literal["ok", "not_applicable", "timeout", "crash", "error", "pending"]
"""How a score ended; ``pending`` until a group reward has seen the complete group, and never after that."""
DEFAULT_REWARD_KEY = "reward"
"""Key of a returned dict that holds the reward, unless another one is chosen."""
LARGEST_REWARD = float(np.finfo(np.float32).max)
"""Rewards are trained as float32."""
Function = TypeVar("Function", bound=Callable[..., Any])


class RewardError(ArealXError):
    """A reward function raised, or returned something that is not a reward."""


class RewardTimeoutError(RewardError):
    """A reward function did not return before its deadline; its worker was killed."""


class RewardCrashError(RewardError):
    """The worker that ran a reward function died."""


def group_reward(function: Function) -> Function:
    """Mark a function that scores all samples of one prompt in one call.

    It takes, by name, any of ``samples`` (``list[RewardSample]``), ``prompt``, ``completions`` (``list[str]``),
    ``prompt_ids`` and ``completion_ids`` (``list[list[int]]``) and the item's columns, and returns a list with one
    result for each sample, in the order of the samples.
    """
    function.is_group_reward = True  # type: ignore[attr-defined]
    return function


@dataclass(slots=True)
class RewardSample:
    """One completion, as rewards of whole groups and post-processing hooks see it."""

    prompt: str
    completion: str
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[int] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    """The other columns of the data item."""
    truncated: bool = False
    """It ended because it became too long."""


@dataclass(slots=True)
class ScoredSample(RewardSample):
    """A completion with its reward, as post-processing hooks see it."""

    reward: float = 0.0
    group_id: int = 0
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class RewardResult:
    """A reward with its parts.

    ``value`` may be left out where ``token_rewards`` or ``step_rewards`` are given: it is their sum.
    """

    value: float | None = None
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
    values: dict[str, float] = field(default_factory=dict)
    """Of several rewards: each one's own value before its weight. One that did not apply is absent."""
    pending: Any = None
    """What a group reward still has to score; set exactly while ``status`` is ``pending``."""


def check_reward(returned: Any, reward_key: str, num_completion_tokens: int | None) -> RewardResult | None:
    """What a reward function returned, as a checked record whose ``value`` is set; None stays None (does not apply).

    Args:
        returned: a number (numpy scalars too), a dict, a ``RewardResult`` or None.
        reward_key: key of a dict that holds the reward. Its other numbers become ``parts`` (true and false as 1 and
            0), the rest ``metadata``. Of a ``RewardResult``, another key than the default takes that part as the
            reward. A reward that is not under the default key is a part, too.
        num_completion_tokens: length that ``token_rewards`` must have; None: unknown.

    Raises:
        RewardError: anything else: NaN, infinity, a bool, a string, a list, a dict without the key.
    """
    if type(returned) is float and -LARGEST_REWARD <= returned <= LARGEST_REWARD:
        return RewardResult(returned)
    if returned is None:
        return None
    if isinstance(returned, RewardResult):
        return _take_part(_check_result(returned, num_completion_tokens), reward_key)
    if isinstance(returned, Mapping):
        return _check_dict(returned, reward_key)
    return RewardResult(_number(returned, "the reward function returned"))


def _check_dict(returned: Mapping[Any, Any], reward_key: str) -> RewardResult:
    if reward_key not in returned:
        keys = ", ".join(repr(key) for key in list(returned)[:20]) or "none"
        raise RewardError(
            f"the reward function returned a dict without {reward_key!r}; its keys: {keys} (see reward.reward_key)"
        )
    if returned[reward_key] is None:
        raise RewardError(
            f"the reward function returned None under {reward_key!r}, expected a number; return None itself where the "
            "reward does not apply"
        )
    result = RewardResult(_number(returned[reward_key], f"the reward function returned under {reward_key!r}"))
    assert result.value is not None
    if reward_key != DEFAULT_REWARD_KEY:
        result.parts[reward_key] = result.value
    for key, value in returned.items():
        if key == reward_key:
            continue
        number = float(value) if isinstance(value, bool | np.bool_) else finite_number(value)
        if number is not None:
            result.parts[str(key)] = number
        elif isinstance(value, float | np.floating):
            _number(value, f"the reward function returned under {key!r}")
        else:
            result.metadata[str(key)] = value
    return result


def _take_part(result: RewardResult, reward_key: str) -> RewardResult:
    if reward_key == DEFAULT_REWARD_KEY:
        return result
    if reward_key not in result.parts:
        parts = ", ".join(repr(name) for name in result.parts) or "none"
        raise RewardError(f"the RewardResult has no part {reward_key!r}; its parts: {parts} (see reward.reward_key)")
    return RewardResult(result.parts[reward_key], result.parts, metadata=result.metadata)


def _check_result(returned: RewardResult, num_completion_tokens: int | None) -> RewardResult:
    parts = _check_parts(returned)
    if returned.token_rewards is None and returned.step_rewards is None:
        return RewardResult(_number(returned.value, "RewardResult.value is"), parts, metadata=dict(returned.metadata))
    tokens = _numbers(returned.token_rewards, "token_rewards")
    if tokens is not None and num_completion_tokens is not None and len(tokens) != num_completion_tokens:
        raise RewardError(
            f"RewardResult.token_rewards has {len(tokens)} numbers, the completion has {num_completion_tokens} tokens"
        )
    steps = _numbers(returned.step_rewards, "step_rewards")
    return RewardResult(_value(returned, tokens, steps), parts, tokens, steps, dict(returned.metadata))


def _check_parts(returned: RewardResult) -> dict[str, float]:
    beside: tuple[tuple[str, Any], ...] = (("parts", returned.parts), ("metadata", returned.metadata))
    for name, given in beside:
        if type(given) is not dict and not isinstance(given, Mapping):
            text = f"RewardResult.{name} is a {type(given).__name__}, expected a dict"
            raise RewardError(f"{text} (leave it out for none)")
    if not returned.parts:
        return {}
    return {str(name): _number(part, f"RewardResult.parts[{name!r}] is") for name, part in returned.parts.items()}


def _value(returned: RewardResult, tokens: list[float] | None, steps: list[float] | None) -> float:
    """The scalar: as given, or the sum of the rewards of tokens, else of steps. With tokens, both must agree."""
    summed = math.fsum(tokens if tokens is not None else steps or ())
    if returned.value is None:
        return _number(summed, "the sum of the rewards of tokens or steps is")
    value = _number(returned.value, "RewardResult.value is")
    if tokens is not None and not math.isclose(value, summed, rel_tol=1e-6, abs_tol=1e-6):
        raise RewardError(
            f"RewardResult.value is {value:g}, but its token_rewards add up to {summed:g}; leave value out, or let "
            "them agree"
        )
    return value


def _numbers(values: Any, name: str) -> list[float] | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple | np.ndarray):
        raise RewardError(f"RewardResult.{name} is a {type(values).__name__}, expected a list of numbers")
    return [_number(value, f"RewardResult.{name}[{index}] is") for index, value in enumerate(values)]


def _is_number(value: Any) -> bool:
    kind = type(value)
    if kind is float or kind is int:  # What asks the abstract class below is many times slower.
        return True
    if kind is str:
        return False
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def finite_number(value: Any) -> float | None:
    """``value`` as a float if it is a number (no bool) that a float32 can hold, else None."""
    if type(value) is float:
        return value if -LARGEST_REWARD <= value <= LARGEST_REWARD else None
    if not _is_number(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= LARGEST_REWARD else None


def _number_hint(value: Any) -> str:
    """What to return instead of something that is much like a number."""
    if isinstance(value, bool | np.bool_):
        return "; return 1.0 or 0.0"
    if isinstance(value, Decimal):
        return "; return float(value)"
    shape = getattr(value, "shape", None)
    is_scalar = isinstance(shape, tuple) and math.prod(shape) == 1 and not isinstance(value, str | bytes)
    return "; return value.item()" if is_scalar else ""


def _number(value: Any, what: str) -> float:
    number = finite_number(value)
    if number is not None:
        return number
    if not _is_number(value):
        shown = repr(value)
        hint = _number_hint(value)
        raise RewardError(f"{what} a {type(value).__name__} ({shown[:80]}), expected a number{hint}")
    shown = str(value) if isinstance(value, float | np.floating) else "a whole number too large"
    raise RewardError(f"{what} {shown}, expected a finite number (float32)")
