"""Rewards: what a reward function may return, and how a call to one ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from areal_x.api.errors import ArealXError

__all__ = [
    "RewardCrashError",
    "RewardError",
    "RewardOutcome",
    "RewardResult",
    "RewardTimeoutError",
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
