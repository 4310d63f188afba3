"""Decides the plain cases as Math-Verify does, without SymPy: numbers, fractions, letters, equal texts.

Each rule here is one that Math-Verify's own verdict follows from; what no rule covers is left to it.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

__all__ = ["compare"]

_INTEGER = re.compile(r"[-+]?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})", re.ASCII)
_DECIMAL = re.compile(r"-?(?:\d{1,8}|\d{1,3}(?:,\d{3}){1,2})\.\d{1,6}|-?\.\d{1,6}", re.ASCII)
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d{1,9})\}\{(-?\d{1,9})\}", re.ASCII)
_AROUND = re.compile(r"(?:([xyzabkmnABCMNPQRSTXYZ])\s*=\s*)?([^=]*?)(?:\^\{?\\circ\}?)?", re.DOTALL)
_WORD = re.compile(r"\\text\{([A-Za-z]+)\}|([ABCFGHJKLMNPQRSTUVWXYZ])")
_FAR_APART = Fraction(1, 10**5)
"""Math-Verify rounds decimals to six places: beyond this distance it calls no two numbers equal."""


def compare(gold: str, answer: str) -> bool | None:
    """Math-Verify's verdict on two normalised contents of boxes, or None if it takes more to tell."""
    if gold == answer:
        return True if gold else None
    a, b = _number(gold), _number(answer)
    if a is not None and b is not None:
        if a[2] is not None and b[2] is not None and a[2] != b[2]:
            return None
        if a[0] == b[0]:
            return True
        if not (a[1] or b[1]) or abs(a[0] - b[0]) > _FAR_APART:
            return False
        return None
    words = _word(gold) if a is None else None, _word(answer) if b is None else None
    if words[0] and words[1]:
        return words[0] == words[1]
    return False if (a and words[1]) or (b and words[0]) else None


def _word(text: str) -> str | None:
    match = _WORD.fullmatch(text)
    return (match.group(1) or match.group(2)).lower() if match else None


@functools.lru_cache(maxsize=4096)
def _number(text: str) -> tuple[Fraction, bool, str | None] | None:
    """Value of a number, whether it is a decimal, and the variable that it is assigned to."""
    around = _AROUND.fullmatch(text)
    if around is None:
        return None
    variable, body = around.groups()
    body = body.strip()
    if _INTEGER.fullmatch(body):
        return Fraction(body.replace(",", "")), False, variable
    if _DECIMAL.fullmatch(body):
        return Fraction(body.replace(",", "")), True, variable
    fraction = _FRACTION.fullmatch(body)
    if fraction is None or int(fraction.group(3)) == 0:
        return None
    value = Fraction(int(fraction.group(2)), int(fraction.group(3)))
    return (-value if fraction.group(1) else value), False, variable
