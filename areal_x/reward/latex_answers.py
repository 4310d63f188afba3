r"""Compares two LaTeX answers with Math-Verify, after refusing what could keep it busy for minutes.

Only short answers made of a few known commands get there; trigonometric and logarithmic ones do not, because
simplifying them can take minutes. ``9^{9^{9^{9}}}``, ``10000000!``, ``\sum``, ``\int`` and
``\binom`` of anything, deep nesting and long digit strings are refused before parsing: a verdict, not a failure, since
the model's own text asked for it.
"""

from __future__ import annotations

import math
import re

from areal_x.reward.math.bounded_child import Limits
from areal_x.reward.math.exact import compare
from areal_x.reward.math.symbolic import normalized, verify_text

__all__ = ["equal_latex", "refusal"]

MAX_ANSWER_LENGTH = 200
MAX_DEPTH = 8
MAX_DIGITS = 15
MAX_TOTAL_EXPONENT = 24
"""Bound on the product of all exponents: powers of powers multiply, and sums raised to one are expanded."""
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_DIGIT_RUN = re.compile(r"\d+")
_POWER = re.compile(r"\^|\*\*")
_EXPONENT = re.compile(
    r"(?:\^|\*\*)\s*(?:\{\s*-?(\d{1,3}|[a-z]|\\circ|\\frac\{\d\}\{\d\})\s*\}|(\d|[a-z]|\\circ))(?!\d|\s*(?:\^|\*\*))"
)
_KNOWN_COMMAND = re.compile(
    r"[dt]?frac|sqrt|times|cdot|div|pm|text|mathrm|mbox|textbf|mathbf|left|right|pi|circ|degree|alpha|beta|theta|"
    r"infty|cup|cap|leq?|geq?|neq|in|quad"
)


def refusal(answer: str) -> str | None:
    """Why ``answer`` is not given to Math-Verify, in one word; ``None`` if it may be."""
    if len(answer) > MAX_ANSWER_LENGTH:
        return "too_long"
    if any(len(run) > MAX_DIGITS for run in _DIGIT_RUN.findall(answer)):
        return "too_many_digits"
    if "!" in answer.replace("\\!", "") or not all(_KNOWN_COMMAND.fullmatch(name) for name in _COMMAND.findall(answer)):
        return "unsupported_operation"
    exponents = [braced or bare for braced, bare in _EXPONENT.findall(answer)]
    total = math.prod(int(exponent) for exponent in exponents if exponent.isdecimal())
    if len(exponents) != len(_POWER.findall(answer)) or total > MAX_TOTAL_EXPONENT:
        return "large_power"
    depth = deepest = 0
    for character in answer:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return "too_deep" if deepest > MAX_DEPTH else None


def equal_latex(gold: str, answer: str, limits: Limits) -> bool:
    """Whether Math-Verify takes ``answer`` for ``gold``; both short, without dollars around, and not refused.

    Raises:
        LimitReached: it could not be decided within ``limits``.
    """
    verdict = compare(normalized(gold), normalized(answer))
    return verify_text(f"${gold}$", f"${answer}$", limits) if verdict is None else verdict
