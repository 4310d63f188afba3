"""How one attempt at a reward server may fail, and what each way means for the call and for the server."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["FAULT_KINDS", "SHOWN_CHARACTERS", "AttemptError", "FaultKind"]

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
