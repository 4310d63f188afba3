"""How a run in the sandbox ended, and errors of the sandbox itself."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from areal_x.api.errors import ArealXError
from areal_x.reward.sandbox.limits import Limits

__all__ = [
    "CallResult",
    "CheckResult",
    "PytestResult",
    "RunResult",
    "SandboxError",
    "SandboxUnavailableError",
    "judge",
    "limit_of_exception",
]


class SandboxError(ArealXError):
    """The sandbox itself failed; says nothing about the program."""


class SandboxUnavailableError(SandboxError):
    """Programs cannot be isolated on this machine, so none is run."""


@dataclass(slots=True)
class RunResult:
    """How a program ended."""

    exit_code: int | None
    """Below 0: the signal that killed it. None: it was stopped from outside."""
    limit: str | None
    """What it ran into: ``time``, ``memory``, ``output``, ``processes`` or ``disk``; None: nothing."""
    stdout: str
    stderr: str
    seconds: float
    """Wall clock time in the sandbox."""
    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    """Largest resident set of its processes."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with status 0."""
        return self.exit_code == 0 and self.limit is None


@dataclass(slots=True)
class CallResult(RunResult):
    """What a function of the program returned: ``value`` if ``returned``, otherwise ``error`` says why not."""

    returned: bool = False
    value: Any = None
    error: str = ""
    loaded: bool = False
    """Whether the program was imported without an exception."""


@dataclass(slots=True)
class CheckResult(RunResult):
    """Whether a test passed. ``exit_code``, ``limit`` and output are those of the program's process."""

    passed: bool = False
    error: str = ""
    loaded: bool = False
    """Whether the program was imported without an exception."""


@dataclass(slots=True)
class PytestResult(RunResult):
    """Which tests of a file passed."""

    tests: dict[str, bool] = field(default_factory=dict)
    """Name of each test that ran -> whether it passed."""
    error: str = ""
    loaded: bool = False
    """Whether the program was imported without an exception."""
    completed: bool = False
    """Whether all tests of the file were run."""


def judge(ended: str, member: dict[str, Any], sizes: tuple[int, ...], stderr: str, limits: Limits) -> str | None:
    """The limit that a program ran into, if any.

    Memory, processes and disk show in how the program failed, so a program can claim these: they are reasons of a
    failure, never the difference between failure and success.
    """
    code = member.get("code")
    if ended == "deadline":
        return "time"
    if any(size > limits.output_bytes for size in sizes):
        return "output"
    if code is None:
        return "memory"  # Its whole namespace was killed, which only the kernel does, for want of memory.
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and member["cpu_seconds"] >= limits.cpu_seconds):
        return "time"
    if code == 0:
        return None
    kind, _, text = stderr.rstrip().rpartition("\n")[2].partition(": ")
    return limit_of_exception(kind, text)


def limit_of_exception(kind: str, text: str) -> str | None:
    """The limit that an exception of the program speaks of: its class and where it says the number of the error."""
    if kind == "MemoryError":
        return "memory"
    if (kind == "BlockingIOError" and "[Errno 11]" in text) or "can't start new thread" in text:
        return "processes"
    if kind == "OSError" and ("[Errno 28]" in text or "[Errno 27]" in text):
        return "disk"
    return None
