"""Checks of single values of a configuration: each raises one line with the key, the value and what would be valid."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from areal_x.api.errors import ConfigError

__all__ = ["above_zero", "at_least", "bad_value", "one_of", "within"]


def bad_value(key: str, value: object, fix: str) -> ConfigError:
    """The error of one value."""
    return ConfigError(f"{key}={value}: {fix}")


def at_least(key: str, value: float | None, bound: float) -> None:
    """Raise ``ConfigError`` for a number below ``bound``, or none that is finite; ``None`` passes."""
    if value is not None and not (math.isfinite(value) and value >= bound):
        raise bad_value(key, value, f"must be {bound:g} or more")


def above_zero(key: str, value: float | None) -> None:
    """Raise ``ConfigError`` for 0, less, or a number that is not finite; ``None`` passes."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise bad_value(key, value, "must be above 0")


def within(key: str, value: float, low: float, high: float) -> None:
    """Raise ``ConfigError`` for a number outside of ``low`` to ``high``."""
    if not low <= value <= high:
        raise bad_value(key, value, f"must be from {low:g} to {high:g}")


def one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise ``ConfigError`` for a word that is none of ``choices``; the nearest one is named."""
    choices = sorted(choices)
    if value in choices:
        return
    close = difflib.get_close_matches(value, choices, n=1)
    raise bad_value(key, value, f"did you mean {close[0]}?" if close else f"must be one of {', '.join(choices)}")
