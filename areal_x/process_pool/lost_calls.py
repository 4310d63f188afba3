"""The results of calls that no worker answered."""

from __future__ import annotations

import os
import signal
import time

from areal_x.process_pool.calls import Call, CallResult
from areal_x.process_pool.wire import CANNOT_ANSWER, encode_call

__all__ = ["crash_result", "encode_arguments", "timeout_result", "unsendable_result"]


def unsendable_result(call: Call, error: Exception) -> CallResult:
    """The call did not reach a worker: an argument cannot be pickled, or this process has no room to send it."""
    cause = f"{type(error).__name__}: {error}"
    text = f"an argument of {call.function.name} cannot be sent to a worker process: {cause}"
    return CallResult("error", None, text, type(error).__name__, text)


def encode_arguments(call: Call, number: int) -> CallResult | None:
    """Pickle the arguments and give the call its number; the result of a call whose arguments cannot be pickled."""
    try:
        call.payload = encode_call(call.function.number, call.kwargs, call.int_lists)
    except Exception as error:  # The boundary to the user's arguments: pickling runs their code.
        return unsendable_result(call, error)
    call.number = number
    call.kwargs = {}
    return None


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
