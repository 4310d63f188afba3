"""How a judge can fail to give a verdict. None of these is ever turned into a number."""

from __future__ import annotations

from areal_x.api.reward_records import RewardError, RewardTimeoutError

__all__ = [
    "JudgeDeadlineError",
    "JudgeError",
    "JudgeReplyError",
    "JudgeRequestError",
    "JudgeUnavailableError",
    "excerpt",
]


def excerpt(text: str, length: int = 120) -> str:
    """The end of a reply, for an error message."""
    return repr(text if len(text) <= length else "..." + text[-length:])


class JudgeError(RewardError):
    """A judge gave no verdict."""


class JudgeRequestError(JudgeError):
    """The server refused the request for good: a wrong model, key, address or option."""


class JudgeUnavailableError(JudgeError):
    """Every attempt of a call failed in a way that may pass."""


class JudgeDeadlineError(JudgeError, RewardTimeoutError):
    """A call's deadline passed, or it waited too long for its turn."""


class JudgeReplyError(JudgeError):
    """The judge's reply holds no verdict: missing, ambiguous, outside the scale, or cut."""
