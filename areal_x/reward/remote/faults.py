"""How one attempt at a reward server may fail, and what each way means for the call and for the server."""

from __future__ import annotations

import email.utils
import random
import time
from typing import Literal, get_args

__all__ = ["FAULT_KINDS", "SHOWN_CHARACTERS", "AttemptError", "FaultKind", "backoff_seconds", "retry_after_seconds"]

FaultKind = Literal[
    "connect", "reset", "timeout", "http_429", "http_5xx", "bad_json",
    "http_4xx", "redirect", "refused", "too_large", "bad_reply", "unexpected",
]  # fmt: skip
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
"""``unexpected``: an exception that is no ``AttemptError``. It goes on to the caller as it is."""

SHOWN_CHARACTERS = 300
"""Of what a server sent, this much goes into an error."""

_RETRIED = frozenset({"connect", "reset", "timeout", "http_429", "http_5xx", "bad_json"})
_SERVER_FAULTS = _RETRIED - {"http_429"}
_NO_ANSWERS = _SERVER_FAULTS | {"refused"}


class AttemptError(Exception):
    """One attempt gave no reward."""

    def __init__(self, kind: FaultKind, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.retry_after = retry_after
        """Seconds that the server asked to wait."""

    @property
    def is_retried(self) -> bool:
        """Whether the call is tried again: the fault may pass. It is not when the server understood and declined."""
        return self.kind in _RETRIED

    @property
    def is_servers(self) -> bool:
        """Whether it counts against the server's health; being busy does not."""
        return self.kind in _SERVER_FAULTS

    @property
    def is_answer(self) -> bool:
        """Whether the server is alive and answered, though not with a reward."""
        return self.kind not in _NO_ANSWERS


def retry_after_seconds(header: str | None, now: float | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or a date (RFC 9110, 10.2.3). None: nothing readable.

    Args:
        now: seconds since the epoch; None: the system's clock.
    """
    if header is None:
        return None
    text = header.strip()
    if text.replace(".", "", 1).isdecimal() and text.isascii():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def backoff_seconds(num_faults: int, retry_after: float | None, first: float, longest: float) -> float:
    """How long a call leaves a server alone after its ``num_faults``-th fault there.

    Doubles from ``first`` up to ``longest``, times a random factor of 0.5 to 1, so that calls that failed together do
    not come back together. A ``Retry-After`` is kept in full and spread over another tenth.
    """
    pause = min(longest, first * 2.0 ** min(num_faults - 1, 30)) * random.uniform(0.5, 1.0)
    return pause if retry_after is None else max(pause, retry_after * random.uniform(1.0, 1.1))
