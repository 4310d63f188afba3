"""The JSON object that a reply is, or ends with."""

from __future__ import annotations

import json
import string
from typing import Any

from areal_x.reward.judge.errors import JudgeReplyError, excerpt

__all__ = ["final_json"]

_FENCE = "```"
_MAX_CHARACTERS = 20_000
_MAX_STARTS = 1_000
"""Looking further costs time on the event loop, up to 0.2 s for the most hostile reply within these limits."""


class _BadJson(ValueError):
    """JSON that parses elsewhere and is refused here."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _BadJson("a key stands twice in one object")
    return found


def _no_constant(name: str) -> float:
    raise _BadJson(f"{name} is no JSON number")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def final_json(text: str, key: str) -> dict[str, Any]:
    """The object with ``key`` that ``text`` is or ends with, a closing code fence aside.

    An earlier object in the text that has ``key`` too must agree, or the verdict is ambiguous.

    Raises:
        JudgeReplyError: there is none, it is broken, or two disagree.
    """
    body = _without_fence(text[-_MAX_CHARACTERS:].rstrip())
    found: list[tuple[dict[str, Any], int]] = []
    position, num_starts, refusal = body.find("{"), 0, ""
    while position >= 0 and num_starts < _MAX_STARTS:
        num_starts += 1
        try:
            value, end = _decoder.raw_decode(body, position)
        except _BadJson as error:
            refusal, end = f" ({error})", position + 1
        except (ValueError, RecursionError):
            end = position + 1
        else:
            found += [(value, end)] if key in value else []
        position = body.find("{", end)
    if not found or found[-1][1] != len(body) or refusal:
        raise JudgeReplyError(f"the reply does not end with a JSON object that has {key!r}{refusal}: {excerpt(text)}")
    last = found[-1][0]
    if any(value[key] != last[key] for value, _ in found):
        raise JudgeReplyError(f"the reply holds objects with different {key!r}: {excerpt(text)}")
    return last


def _without_fence(text: str) -> str:
    """``text`` less a code fence at its end, in linear time: a regular expression tries each blank anew."""
    head = text.rstrip(string.ascii_letters)
    return head.removesuffix(_FENCE).rstrip() if head.endswith(_FENCE) else text
