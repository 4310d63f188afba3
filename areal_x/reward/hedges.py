r"""Answers that name the gold without giving it: a denial (``\neq 11``, ``not 11``), or several values (``11|12``)."""

from __future__ import annotations

import re

__all__ = ["denies", "digits_apart", "names_several"]

_MARKUP = re.compile(r"</?[A-Za-z]{1,20}>|<\|[^<>|]{1,30}\|>")
_RELATION = re.compile(
    r"\\(?:neq?|leq?|geq?|leqslant|geqslant|lt|gt|not|less|greater)(?![A-Za-z])|[<>\u2260\u2264\u2265]"
    r"|\b(?:not|never|cannot|wrong|incorrect|false)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(
    r"\\\\\s{0,3}[-+$\d.]|[|&~;:#\n\u200b\u3001\u3002\uff0c\uff1a\uff1b]|\.\.|\$\$|\\[()\[\]]|\\%\s{0,3}\d|\\cup"
    r"|[0-9]_[0-9]|\\text\s{0,3}\{[^{}0-9]*[0-9]"
)
_ABSOLUTE_VALUE = re.compile(r"\s*\|[^|]*\|\s*")
_DELIMITERS = re.compile(r"^\s*(?:\$\$?|\\[(\[])|(?:\$\$?|\\[)\]])\s*$")
_DIGIT_GROUPS = re.compile(r"(?<!\d)\d{1,3}(?:(?:,|\{,\}|,\\!|\\,| )\d{3})+(?!\d)")
_APART = re.compile(r"\d(?:\s|[,{}]|\\[ ,;!])+\d")


def denies(answer: str, gold: str) -> bool:
    """Whether ``answer`` has an inequality or a word such as "not" where ``gold`` has neither."""
    return _RELATION.search(_MARKUP.sub("", answer)) is not None and _RELATION.search(gold) is None


def names_several(answer: str, gold: str) -> bool:
    """Whether ``answer`` has a sign that divides values where ``gold`` has none. An absolute value has none."""
    answer = _DELIMITERS.sub("", answer)
    if _ABSOLUTE_VALUE.fullmatch(answer):
        answer = answer.replace("|", "")
    return _SEPARATOR.search(answer) is not None and _SEPARATOR.search(gold) is None


def digits_apart(answer: str) -> bool:
    """Whether blanks or commas divide digits otherwise than in groups of three: ``1,2`` and ``1 2``."""
    return _APART.search(_DIGIT_GROUPS.sub("0", answer)) is not None
