"""Plain Python values as JSON and back, exactly: the only thing that passes between a program and what checks it.

Numbers, strings, booleans and None are themselves; every other kind is an array that begins with its letter. Subclasses
become their plain base, so no method of the program's own comes along.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

__all__ = ["InvalidValueError", "Opaque", "decode", "dump", "encode", "load"]

_MAX_JSON_INT = 2**63
_SEQUENCES: dict[Any, str] = {list: "l", tuple: "t", set: "s", frozenset: "S"}
_MAKERS: dict[str, Callable[[list[Any]], Any]] = {"l": list, "t": tuple, "s": set, "S": frozenset}


class InvalidValueError(Exception):
    """What came from the other side is not an encoded value."""


class Opaque:
    """A value that cannot pass; it equals nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def encode(value: Any, other: Callable[[Any], list[Any]]) -> Any:
    """``value`` as something that JSON can hold; what is not plain goes through ``other``.

    Raises:
        RecursionError: nested too deeply.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -_MAX_JSON_INT < number < _MAX_JSON_INT else ["i", hex(number)]
    if isinstance(value, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else ["f", repr(real)]
    for kind, letter in _SEQUENCES.items():
        if isinstance(value, kind):
            return [letter, *(encode(item, other) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        pairs = ["d"]
        for key in dict.__iter__(value):
            pairs += [encode(key, other), encode(dict.__getitem__(value, key), other)]
        return pairs
    if isinstance(value, bytes | bytearray):
        return ["b", bytes(value).hex(), isinstance(value, bytearray)]
    if isinstance(value, complex):
        return ["c", repr(value.real), repr(value.imag)]
    if type(value) is Fraction:
        return ["q", hex(value.numerator), hex(value.denominator)]
    if type(value) is Decimal:
        return ["D", str(value)]
    if type(value) is range:
        return ["r", value.start, value.stop, value.step]
    return other(value)


def decode(data: Any, other: Callable[[list[Any]], Any]) -> Any:
    """The value that ``encode`` gave; arrays of an unknown letter go through ``other``.

    Raises:
        InvalidValueError: it is not one.
        RecursionError: nested too deeply.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise InvalidValueError("an object is no value")
        return data
    try:
        letter, rest = data[0], data[1:]
        if letter in _MAKERS:
            return _MAKERS[letter]([decode(item, other) for item in rest])
        if letter == "d":
            items = [decode(item, other) for item in rest]
            return dict(zip(items[::2], items[1::2], strict=True))
        return _scalar(letter, rest, data, other)
    except (IndexError, TypeError, ValueError, ArithmeticError, InvalidOperation) as error:
        raise InvalidValueError(f"{type(error).__name__}: {error}") from error


def _scalar(letter: Any, rest: list[Any], data: list[Any], other: Callable[[list[Any]], Any]) -> Any:
    if letter == "i":
        return int(rest[0], 16)
    if letter == "f":
        return float(rest[0])
    if letter == "b":
        return bytearray.fromhex(rest[0]) if rest[1] else bytes.fromhex(rest[0])
    if letter == "c":
        return complex(float(rest[0]), float(rest[1]))
    if letter == "q":
        return Fraction(int(rest[0], 16), int(rest[1], 16))
    if letter == "D":
        return Decimal(rest[0])
    if letter == "r":
        return range(*rest)
    return other(data)


def dump(message: Any) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def load(line: bytes) -> Any:
    """The message of one line.

    Raises:
        InvalidValueError: it is none.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"not a message: {error}") from error
