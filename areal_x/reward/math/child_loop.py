"""The life of the grader's child: job after job from a socket, each begun in the same state, until it is spent.

The child first says that it is ready. A request is one line of JSON: the number of the job's function, its arguments,
the two limits. The reply is one line, too: what came of it and the value. A ``!`` before it says that the child is
spent and takes no other job: it has served many, has grown, or is about to evaluate text that could leave something
behind (``child_guard``), which it says before it does so.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from areal_x.process_pool import isolation
from areal_x.reward.math.child_guard import announce_before_doubtful_text, guard_child

__all__ = ["MAX_GROWTH_BYTES", "MAX_JOBS", "READY", "SPENT", "read_line", "run_child"]

MAX_JOBS = 1000
"""Jobs of one child: SymPy's caches grow with each."""
MAX_GROWTH_BYTES = 128 << 20
"""What a child may have grown, in memory at its peak or in address space after a job, and still go on."""
READY = b"ready\n"
SPENT = b"!"
_MAX_REPLY_BYTES = 1 << 20


def run_child(
    descriptor: int, parent: int, functions: Sequence[Callable[..., Any]], memory_limit_bytes: int
) -> NoReturn:
    """Lock this process, just forked from ``parent``, in and serve jobs; it ends without the parent's clean-up."""
    try:
        isolation.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        with _reply_to_errors(descriptor):
            guard_child(descriptor, _address_space() + MAX_GROWTH_BYTES + memory_limit_bytes)
            _serve(descriptor, functions)
    finally:
        os._exit(0)


@contextlib.contextmanager
def _reply_to_errors(descriptor: int) -> Any:
    """Answer with what was raised; the child ends behind it."""
    try:
        yield
        return
    except MemoryError:
        reply = ["limit", "math_memory_limit"]
    except RecursionError:
        reply = ["limit", "math_too_deep"]
    except BaseException as error:  # The boundary of a process: it must end here, not go on as a copy of its parent.
        reply = ["error", f"{type(error).__name__}: {str(error)[:500]}"]
    _write(descriptor, SPENT + json.dumps(reply).encode() + b"\n")


def _serve(descriptor: int, functions: Sequence[Callable[..., Any]]) -> None:
    announce_before_doubtful_text(lambda: _write(descriptor, SPENT))
    restore = _state_now()
    first_peak, first_size = _peak_memory(), _address_space()
    size = first_size
    _write(descriptor, READY)
    for count in range(1, MAX_JOBS + 1):
        request = read_line(descriptor)
        if not request:
            return  # The parent has closed its end.
        number, arguments, time_limit, memory_limit_bytes = json.loads(request)
        _bound_job(time_limit, size + memory_limit_bytes)
        reply = json.dumps(["value", functions[number](*arguments)]).encode()[:_MAX_REPLY_BYTES] + b"\n"
        restore()
        size = _address_space()
        growth = max(_peak_memory() - first_peak, size - first_size)
        _write(descriptor, SPENT + reply if count == MAX_JOBS or growth > MAX_GROWTH_BYTES else reply)


def read_line(descriptor: int) -> bytes:
    """The next line, or nothing when the other side has closed its end; there is never more than one on its way."""
    chunks: list[bytes] = []
    while chunk := os.read(descriptor, 1 << 16):
        chunks.append(chunk)
        if chunk.endswith(b"\n"):
            return b"".join(chunks)
    return b""


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _bound_job(time_limit: float, address_space: int) -> None:
    """Set the soft limits of the next job."""
    _soft_limit(resource.RLIMIT_AS, address_space)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _soft_limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + time_limit) + 1)


def _soft_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _state_now() -> Callable[[], None]:
    """A function that sets the generators of random numbers, precision, switches and limits back to what they are now.

    What stays are caches: of SymPy, Math-Verify and ANTLR. They hold values of pure functions of their keys.
    """
    generators = [random.setstate]
    states: list[Any] = [random.getstate()]
    sympy_random = sys.modules.get("sympy.core.random")
    if sympy_random is not None:
        generators.append(sympy_random.rng.setstate)
        states.append(sympy_random.rng.getstate())
    parameters = sys.modules.get("sympy.core.parameters")
    switches = ("evaluate", "distribute", "exp_is_pow")
    values = [getattr(parameters.global_parameters, name) for name in switches] if parameters is not None else []
    mpmath = sys.modules.get("mpmath")
    precision = mpmath.mp.prec if mpmath is not None else None
    depth, digits = sys.getrecursionlimit(), sys.get_int_max_str_digits()

    def restore() -> None:
        for generator, state in zip(generators, states, strict=True):
            generator(state)
        for name, value in zip(switches, values, strict=False):
            setattr(parameters.global_parameters, name, value)  # type: ignore[union-attr]
        if mpmath is not None:
            mpmath.mp.prec = precision
        sys.setrecursionlimit(depth)
        sys.set_int_max_str_digits(digits)

    return restore
