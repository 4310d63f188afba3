"""The results of calls whose worker did not answer."""

from __future__ import annotations

import os
import signal
import time

from areal_x.process_pool.calls import Call, CallResult
from areal_x.process_pool.wire import CANNOT_ANSWER

__all__ = ["crash_result", "timeout_result"]


def timeout_result(call: Call, started_at: float) -> CallResult:
    """The worker was killed at the call's deadline."""
    text = f"{call.function.name} did not return within {call.timeout:g} s; its worker was killed"
    return CallResult(
        "timeout", error=text, seconds=time.monotonic() - started_at, started_at=started_at, attempts=call.attempts
    )


def crash_result(call: Call, started_at: float, status: int | None) -> CallResult:
    """The worker died; ``status`` is what ``waitpid`` said of it, None if it had to be killed."""
    reason = _reason(status) if status is not None else "it closed its connection"
    text = f"the worker that ran {call.function.name} died {call.attempts} times: {reason}"
    return CallResult(
        "crash", error=text, seconds=time.monotonic() - started_at, started_at=started_at, attempts=call.attempts
    )


def _reason(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by {signal.Signals(number).name if number in set(signal.Signals) else f'signal {number}'}"
    code = os.WEXITSTATUS(status)
    if code == CANNOT_ANSWER:
        return "it could not answer: its connection was closed or its memory spent"
    return f"exit code {code}"
