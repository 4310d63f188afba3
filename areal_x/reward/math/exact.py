r"""Decides the plain cases as Math-Verify does, without SymPy: numbers, roots, multiples of pi, tuples of them, words.

Each rule here is one that Math-Verify's own verdict follows from; what no rule covers is left to it.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from fractions import Fraction

from areal_x.reward.math.polynomials import polynomial

__all__ = ["compare"]

_INTEGER = re.compile(r"[-+]?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})", re.ASCII)
_DECIMAL = re.compile(r"-?(?:\d{1,8}|\d{1,3}(?:,\d{3}){1,2})\.\d{1,6}|-?\.\d{1,6}", re.ASCII)
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d{1,9})\}\{(-?\d{1,9})\}", re.ASCII)
_FACTORS = r"(\d{1,5})?(?:\\sqrt\{(\d{1,5})\})?(\\pi)?"
_OVER = re.compile(rf"(-?)\\frac\{{{_FACTORS}\}}\{{(\d{{1,5}})\}}(?:\\sqrt\{{(\d{{1,5}})\}})?(\\pi)?", re.ASCII)
_PRODUCT = re.compile(rf"(-?){_FACTORS}", re.ASCII)
_ASSIGNED = re.compile(r"(?:([xyzabkmnABCMNPQRSTXYZ])\s*=\s*)?([^=]*?)(?:\^\{?\\circ\}?)?", re.DOTALL)
_WORD = re.compile(r"\\text\{([A-Za-z]+)\}|([ABCFGHJKLMNPQRSTUVWXYZ])")
_TUPLE = re.compile(r"([(\[])([^][()|;]*)([)\]])")
_DIGITS_APART = re.compile(r"\d\s+\d")
_FAR_APART = 1e-5
"""Math-Verify rounds decimals to six places: beyond this distance it calls no two numbers equal."""


@dataclass(frozen=True, slots=True)
class _Value:
    """The number ``sign * sqrt(square) * pi ** pi_power``."""

    sign: int
    square: Fraction
    pi_power: int = 0
    is_decimal: bool = False

    def __float__(self) -> float:
        return self.sign * math.sqrt(self.square) * math.pi**self.pi_power

    def equals(self, other: _Value) -> bool | None:
        """Whether Math-Verify calls them equal; None where its rounding decides."""
        exact = (self.sign, self.square, self.pi_power if self.sign else 0)
        if exact == (other.sign, other.square, other.pi_power if other.sign else 0):
            return True
        a, b = float(self), float(other)
        is_rational = not (self.is_decimal or other.is_decimal) and self.is_rational() and other.is_rational()
        return False if is_rational or abs(a - b) > _FAR_APART * max(1.0, abs(a) * 1e-3) else None

    def is_rational(self) -> bool:
        """Whether it is a whole number or a fraction."""
        top, bottom = self.square.numerator, self.square.denominator
        return self.pi_power == 0 and math.isqrt(top) ** 2 == top and math.isqrt(bottom) ** 2 == bottom


def compare(gold: str, answer: str) -> bool | None:
    """Math-Verify's verdict on two normalised contents of boxes, or None if it takes more to tell."""
    if gold == answer:
        return True if gold else None
    a, b = _number(gold), _number(answer)
    if a is not None and b is not None:
        variables_differ = a[1] is not None and b[1] is not None and a[1] != b[1]
        return None if variables_differ else a[0].equals(b[0])
    words = _word(gold) if a is None else None, _word(answer) if b is None else None
    if words[0] and words[1]:
        return words[0] == words[1]
    if (a and words[1]) or (b and words[0]):
        return False
    if (a and _is_collection(answer)) or (b and _is_collection(gold)):
        return False
    verdict = _compare_tuples(gold, answer)
    if verdict is None:
        verdict = _compare_sets(gold, answer)
    return _compare_polynomials(gold, answer) if verdict is None else verdict


def _compare_polynomials(gold: str, answer: str) -> bool | None:
    a, b = polynomial(gold), polynomial(answer)
    if a is None or b is None:
        return None
    # Letters alone are names to Math-Verify: it compares them in its own way.
    return a == b if any(len(value) > 1 for value in (a, b)) else None


def _compare_sets(gold: str, answer: str) -> bool | None:
    """Sets and lists of two or more different plain numbers, all of them exact."""
    a, b = _exact_set(gold), _exact_set(answer)
    if a is not None and b is not None:
        return a == b
    return None


def _exact_set(text: str) -> set[_Value] | None:
    braced = text.startswith("\\{") and text.endswith("\\}")
    parts = (text[2:-2] if braced else text).split(",")
    values = [_number(part.strip()) for part in parts]
    if len(values) < 2 or (not braced and " " not in text and len(parts[-1].strip()) == 3):
        return None
    found = set()
    for value in values:
        if value is None or value[1] is not None or value[0].is_decimal or not value[0].is_rational():
            return None
        found.add(value[0])
    return found if len(found) == len(values) else None


def _compare_tuples(gold: str, answer: str) -> bool | None:
    """Tuples and intervals of plain numbers, in brackets of the same kind."""
    a, b = _TUPLE.fullmatch(gold), _TUPLE.fullmatch(answer)
    if a is None or b is None or (a.group(1), a.group(3)) != (b.group(1), b.group(3)):
        return None
    golds, answers = ([_number(part.strip()) for part in side.group(2).split(",")] for side in (a, b))
    if len(golds) != len(answers) or len(golds) < 2:
        return None
    verdicts = []
    for one, other in zip(golds, answers, strict=True):
        if one is None or other is None or one[1] is not None or other[1] is not None:
            return None
        verdicts.append(one[0].equals(other[0]))
    if len(golds) == 2 and not (_ascending(golds) and _ascending(answers)):
        return None  # It may have been read as an interval that is empty.
    return None if None in verdicts else all(verdicts)


def _is_collection(text: str) -> bool:
    """A set, a list, a tuple or an interval of at least two different plain numbers."""
    if _exact_set(text) is not None:
        return True
    match = _TUPLE.fullmatch(text)
    parts = [_number(part.strip()) for part in match.group(2).split(",")] if match else []
    return len(parts) > 1 and None not in parts and (len(parts) > 2 or _ascending(parts))


def _ascending(pair: list[tuple[_Value, str | None] | None]) -> bool:
    low, high = pair
    return low is not None and high is not None and float(low[0]) < float(high[0])


def _word(text: str) -> str | None:
    match = _WORD.fullmatch(text)
    return (match.group(1) or match.group(2)).lower() if match else None


@functools.lru_cache(maxsize=4096)
def _number(text: str) -> tuple[_Value, str | None] | None:
    """A plain number, and the variable that it is assigned to."""
    assigned = _ASSIGNED.fullmatch(text)
    if assigned is None or len(text) > 100:
        return None
    variable, body = assigned.group(1), assigned.group(2).strip()
    fraction = _FRACTION.fullmatch(body)
    if _INTEGER.fullmatch(body) or _DECIMAL.fullmatch(body):
        rational = Fraction(body.replace(",", ""))
    elif fraction is not None and int(fraction.group(3)) != 0:
        rational = Fraction(int(fraction.group(2)), int(fraction.group(3)))
        rational = -rational if fraction.group(1) else rational
    else:
        value = None if fraction is not None or _DIGITS_APART.search(body) else _product("".join(body.split()))
        return None if value is None else (value, variable)
    return _Value((rational > 0) - (rational < 0), rational**2, 0, "." in body), variable


def _product(text: str) -> _Value | None:
    r"""The value of ``k\sqrt{n}\pi`` and of ``\frac{k\sqrt{n}\pi}{m}``."""
    over = _OVER.fullmatch(text)
    if over is not None:
        sign, number, root, pi, bottom, outer_root, outer_pi = over.groups()
        if int(bottom) == 0 or not (number or root or pi):
            return None
    else:
        product = _PRODUCT.fullmatch(text)
        if product is None or not any(product.groups()[1:]):
            return None
        (sign, number, root, pi), bottom, outer_root, outer_pi = product.groups(), "1", None, None
    factor = Fraction(int(number or 1), int(bottom)) ** 2 * int(root or 1) * int(outer_root or 1)
    if factor == 0:
        return None
    return _Value(-1 if sign else 1, factor, bool(pi) + bool(outer_pi))
