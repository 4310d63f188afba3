"""Compares what a program printed or returned with what is expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["COMPARISONS", "same_output", "same_value"]

COMPARISONS = ("tokens", "exact", "float")


def same_output(printed: str, expected: str, comparison: str, tolerance: float) -> bool:
    """Whether two texts are the same.

    Args:
        comparison: ``tokens``: word by word, however they are spaced; ``exact``: but for white space at the ends of
            lines and of the text; ``float``: like ``tokens``, and numbers may differ.
        tolerance: of ``float``: relative, and absolute near 0.
    """
    if comparison == "exact":
        return _lines(printed) == _lines(expected)
    words, wanted = printed.split(), expected.split()
    if words == wanted:
        return True
    if comparison == "tokens" or len(words) != len(wanted):
        return False
    return all(one == other or _close(one, other, tolerance) for one, other in zip(words, wanted, strict=True))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _close(word: str, wanted: str, tolerance: float) -> bool:
    try:
        return math.isclose(float(word), float(wanted), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def same_value(returned: Any, expected: Any, comparison: str, tolerance: float) -> bool:
    """Whether a returned value is the expected one, which comes from JSON: a tuple is as good as a list."""
    try:
        return _same(returned, expected, tolerance if comparison == "float" else None)
    except RecursionError:
        return False


def _same(returned: Any, expected: Any, tolerance: float | None) -> bool:
    if isinstance(expected, list | tuple):
        if not isinstance(returned, list | tuple) or len(returned) != len(expected):
            return False
        return all(_same(one, other, tolerance) for one, other in zip(returned, expected, strict=True))
    if isinstance(expected, Mapping):
        if not isinstance(returned, Mapping) or len(returned) != len(expected):
            return False
        # JSON has texts for keys only.
        by_key = {key if isinstance(key, str) else str(key): value for key, value in returned.items()}
        wanted = {key if isinstance(key, str) else str(key): value for key, value in expected.items()}
        return by_key.keys() == wanted.keys() and all(_same(by_key[key], wanted[key], tolerance) for key in wanted)
    if tolerance is not None and isinstance(returned, int | float) and isinstance(expected, int | float):
        return math.isclose(returned, expected, rel_tol=tolerance, abs_tol=tolerance)
    return bool(returned == expected)
