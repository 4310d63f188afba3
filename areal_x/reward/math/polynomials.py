r"""Reads small polynomials with rational coefficients, as ``(x+1)^2`` and ``\frac{1}{2}x-3``, into a normal form.

What is not plainly one of them (a letter before a bracket may be a function, ``e``, ``i`` and ``d`` are no variables)
is left to others: the answer is then None.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

__all__ = ["polynomial"]

Polynomial = dict[tuple[tuple[str, int], ...], Fraction]
"""Coefficients by monomial; a monomial is its variables with their powers, sorted; no coefficient is 0."""

_TOKEN = re.compile(
    r"\\frac\{(-?\d{1,4})\}\{(\d{1,4})\}|(\d{1,6})|([abckmnpqrstuvwxyz])|(\^(?:\d(?!\d)|\{\d\}))|(\\cdot|\\times|[-+*()])",
    re.ASCII,
)
_BLANKS = re.compile(r"(?<![\w}])\s+|\s+(?![\w\\])|(?<=[a-z])\s+(?=\d)")
_MAX_LENGTH = 60
_MAX_POWER = 6
_MAX_TERMS = 60


class _NotPlainError(ValueError):
    """Something that is not plainly a polynomial."""


@functools.lru_cache(maxsize=4096)
def polynomial(text: str) -> Polynomial | None:
    """The normal form of a small polynomial; None for anything else. Equal polynomials have equal normal forms."""
    text = _BLANKS.sub("", text)
    if not text or len(text) > _MAX_LENGTH:
        return None
    tokens: list[re.Match[str]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        tokens.append(match)
        position = match.end()
    try:
        return _Reader(tokens).read()
    except _NotPlainError:
        return None


class _Reader:
    """A recursive-descent parser over the tokens."""

    def __init__(self, tokens: list[re.Match[str]]) -> None:
        self._tokens = tokens
        self._next = 0

    def read(self) -> Polynomial:
        value = self._sum()
        if self._next < len(self._tokens):
            raise _NotPlainError
        return value

    def _peek(self) -> str:
        return self._tokens[self._next].group() if self._next < len(self._tokens) else ""

    def _take(self) -> re.Match[str]:
        self._next += 1
        return self._tokens[self._next - 1]

    def _sum(self) -> Polynomial:
        sign = -1 if self._peek() == "-" else 1
        if sign < 0:
            self._take()
        total = _scaled(self._product(), sign)
        while self._peek() in ("+", "-"):
            sign = -1 if self._take().group() == "-" else 1
            total = _added(total, _scaled(self._product(), sign))
        return total

    def _product(self) -> Polynomial:
        value = self._power()
        while self._peek() not in ("", "+", "-", ")"):
            if self._peek() in ("*", "\\cdot", "\\times"):
                self._take()
            elif self._tokens[self._next].group(3) is not None or self._tokens[self._next].group(1) is not None:
                raise _NotPlainError  # A number behind a factor: a mixed number, or no number at all.
            value = _multiplied(value, self._power())
        return value

    def _power(self) -> Polynomial:
        if not self._peek():
            raise _NotPlainError
        top, bottom, number, letter, _, sign = self._take().groups()
        if letter is not None:
            if self._peek() == "(":
                raise _NotPlainError
            base: Polynomial = {((letter, 1),): Fraction(1)}
        elif sign == "(":
            base = self._sum()
            if self._peek() != ")":
                raise _NotPlainError
            self._take()
        elif number is not None or top is not None:
            value = Fraction(int(number)) if number is not None else _fraction(top, bottom)
            base = {(): value} if value else {}
        else:
            raise _NotPlainError
        if not self._peek().startswith("^"):
            return base
        exponent = int(self._take().group().strip("^{}"))
        if not 1 <= exponent <= _MAX_POWER or self._peek().startswith("^") or (top is not None):
            raise _NotPlainError
        return functools.reduce(_multiplied, [base] * exponent)


def _fraction(top: str, bottom: str) -> Fraction:
    if int(bottom) == 0:
        raise _NotPlainError
    return Fraction(int(top), int(bottom))


def _scaled(value: Polynomial, factor: int) -> Polynomial:
    return {monomial: coefficient * factor for monomial, coefficient in value.items()}


def _added(a: Polynomial, b: Polynomial) -> Polynomial:
    total = dict(a)
    for monomial, coefficient in b.items():
        total[monomial] = total.get(monomial, Fraction(0)) + coefficient
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def _multiplied(a: Polynomial, b: Polynomial) -> Polynomial:
    if len(a) * len(b) > _MAX_TERMS:
        raise _NotPlainError
    total: Polynomial = {}
    for one, first in a.items():
        for other, second in b.items():
            powers = dict(one)
            for letter, power in other:
                powers[letter] = powers.get(letter, 0) + power
            monomial = tuple(sorted(powers.items()))
            total[monomial] = total.get(monomial, Fraction(0)) + first * second
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}
