"""What a member of a run may be told to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import checker, program

__all__ = ["WORKS"]

WORKS: dict[str, Callable[[], Any]] = {
    "script": program.run_script,
    "call": lambda: program.run_module(4),
    "module": lambda: program.run_module(5),
    "asserts": checker.run_asserts,
    "pytest": checker.run_pytest,
}
