"""A sandbox for model-written Python: isolated processes on a warm interpreter."""

from areal_x.reward.sandbox.limits import Limits
from areal_x.reward.sandbox.results import (
    CallResult,
    CheckResult,
    PytestResult,
    RunResult,
    SandboxError,
    SandboxUnavailableError,
)
from areal_x.reward.sandbox.sandbox import Sandbox

__all__ = [
    "CallResult",
    "CheckResult",
    "Limits",
    "PytestResult",
    "RunResult",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailableError",
]
