"""What a check found, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Severity"]

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake: an error costs samples or stops the run, a warning may teach the model something else."""

    name: str
    """A word for the kind, such as ``constant_score``."""
    severity: Severity
    message: str
    fix: str = ""
