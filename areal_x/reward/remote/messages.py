"""What is sent to a reward server and what it may answer, in the shapes of slime and of OpenRLHF.

slime:    ``{"prompt": str, "response": str, "label": ...}`` -> a number, an object, or null (does not apply).
OpenRLHF: ``{"query": [...], "prompts": [...], "labels": [...]}`` -> ``{"rewards": [...], "scores": [...],
"extra_logs": {...}}``, one entry for each query.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from areal_x.api.errors import DataError

__all__ = ["ReplyError", "TruncatedReplyError", "openrlhf_body", "openrlhf_results", "parse_json", "slime_body",
           "slime_result"]  # fmt: skip

_DEEPEST = 100
"""Levels of a reply; the records that it goes into are read and written by recursion."""

Result = float | int | dict[str, Any] | None


class ReplyError(ValueError):
    """A reply that is complete and is not a reward; asking again would not help. The text may quote all of the reply:
    it has yet to be cut, after the secrets in it are hidden."""


class TruncatedReplyError(ValueError):
    """A reply that is not JSON: cut off, or made by something else than the reward server."""


def slime_body(prompt: str, completion: str, label: Any) -> bytes:
    """The request for one completion.

    Raises:
        DataError: the label cannot be written as JSON.
    """
    return _dump({"prompt": prompt, "response": completion, "label": label})


def openrlhf_body(prompt: str, completions: Sequence[str], label: Any) -> bytes:
    """The request for completions of one prompt; a query is the prompt with the completion.

    Raises:
        DataError: the label cannot be written as JSON.
    """
    count = len(completions)
    queries = [prompt + completion for completion in completions]
    return _dump({"query": queries, "prompts": [prompt] * count, "labels": [label] * count})


def _dump(content: dict[str, Any]) -> bytes:
    try:
        return json.dumps(content, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a reward server gets JSON, and the label column cannot be written as such: {error}") from None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def parse_json(body: bytes) -> Any:
    """The value of a reply. NaN, infinities, numbers beyond a float and keys that stand twice are refused.

    Raises:
        TruncatedReplyError: the body is not JSON.
        ReplyError: it is, with a number that is none, an ambiguous key, or nested more than 100 deep.
    """
    try:
        value = json.loads(
            body.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_unique,
        )
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise TruncatedReplyError(f"the reply of {len(body)} bytes is not JSON, or was cut off") from None
    except RecursionError:
        raise ReplyError("the reply is nested too deep") from None
    except ReplyError:
        raise
    except ValueError as error:  # An integer of thousands of digits.
        raise ReplyError(f"the reply holds a number that cannot be read: {error}") from None
    if body.count(b"[") + body.count(b"{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise ReplyError(f"the reply is nested too deep, more than {_DEEPEST} levels")
    return value


def _depth(value: Any) -> int:
    """How many lists and objects stand inside each other, without recursion."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ReplyError("a key stands twice in one object of the reply, which readers understand differently")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ReplyError(f"expected finite numbers, the reply holds {text}")


def _whole(text: str) -> int:
    number = int(text)
    try:
        float(number)
    except OverflowError:
        raise ReplyError(f"the reply holds an integer of {len(text)} digits, which no float holds") from None
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ReplyError(f"expected finite numbers, the reply holds {text}")
    return number


def slime_result(reply: Any) -> Result:
    """The reward of slime's shape: a number or an object as it is, null as None.

    Raises:
        ReplyError: anything else.
    """
    if reply is None or isinstance(reply, dict) or _is_number(reply):
        return reply
    raise ReplyError(f"expected a number or an object, the reply is a {_kind(reply)}: {json.dumps(reply)}")


def openrlhf_results(reply: Any, count: int) -> list[Result]:
    """The rewards of OpenRLHF's shape, in order: each a dict with ``reward``, ``score`` and the extra logs.

    ``scores`` may be missing, and is the reward then. A reward of null does not apply.

    Raises:
        ReplyError: no ``rewards``, not as many as queries, or something that is not a number.
    """
    if not isinstance(reply, dict) or "rewards" not in reply:
        shown = f"an object with the keys {sorted(reply)}" if isinstance(reply, dict) else f"a {_kind(reply)}"
        raise ReplyError(f"the reply is {shown}, expected an object with 'rewards'")
    rewards = _column(reply["rewards"], count, "rewards")
    scores = _column(reply["scores"], count, "scores") if reply.get("scores") is not None else rewards
    extra = reply.get("extra_logs") or {}
    if not isinstance(extra, dict):
        raise ReplyError(f"'extra_logs' of the reply is a {_kind(extra)}, expected an object")
    logs = {_free_name(name): _spread(value, count, name) for name, value in extra.items()}
    return [
        None
        if rewards[i] is None
        else {"reward": rewards[i], "score": scores[i]} | {name: values[i] for name, values in logs.items()}
        for i in range(count)
    ]


def _column(value: Any, count: int, name: str) -> list[Any]:
    """One number or null for each query; each may stand in a list of its own."""
    values = value if isinstance(value, list) else [value]
    if len(values) != count:
        raise ReplyError(f"the reply holds {len(values)} {name} for {count} completions")
    numbers = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in values]
    for number in numbers:
        if number is not None and not _is_number(number):
            raise ReplyError(f"{name!r} of the reply holds a {_kind(number)}, expected numbers")
    return numbers


def _spread(value: Any, count: int, name: str) -> list[Any]:
    if isinstance(value, list):
        if len(value) != count:
            raise ReplyError(f"the reply holds {len(value)} values of extra_logs.{name} for {count} completions")
        return value
    return [value] * count


def _free_name(name: str) -> str:
    return f"extra_logs/{name}" if name in ("reward", "score") else name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    kinds = {bool: "boolean", str: "string", list: "list", dict: "object", type(None): "null"}
    return kinds.get(type(value), "number")
