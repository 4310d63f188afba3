"""Checks of the options of built-in rewards: a wrong value is an error before anything is scored."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import nearest
from areal_x.api.reward_arguments import REWARD_ARGUMENTS

__all__ = ["argument_signature", "check_choice", "check_column", "check_number", "check_whole_number", "gold_answer"]


def check_choice(reward: str, option: str, value: object, valid: Iterable[str | None]) -> None:
    """Raise unless ``value`` is one of ``valid``.

    Raises:
        ConfigError: names the option, the value and what would be valid.
    """
    choices = list(valid)
    if value not in choices or isinstance(value, bool):
        shown = ", ".join("null" if choice is None else choice for choice in choices)
        hint = nearest(str(value), [choice for choice in choices if choice is not None])
        raise ConfigError(f"{option}={value!r} of reward {reward!r} is not one of: {shown}{hint}")


def check_number(reward: str, option: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a float.

    Raises:
        ConfigError: it is no finite number, or not between ``low`` and ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{option}={value!r} of reward {reward!r} is not a finite number")
    number = float(value)
    if not low <= number <= high:
        raise ConfigError(f"{option}={value!r} of reward {reward!r} is not {_range(low, high)}")
    return number


def check_whole_number(reward: str, option: str, value: object, low: int) -> int:
    """``value`` as an int of at least ``low``.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{option}={value!r} of reward {reward!r} is not a whole number of at least {low}")
    return value


def check_column(reward: str, option: str, column: object) -> None:
    """Raise unless ``column`` can be the name of a data column.

    Raises:
        ConfigError: it is no text, or the name of an argument that is no column.
    """
    if not isinstance(column, str) or not column.isidentifier() or column in REWARD_ARGUMENTS:
        raise ConfigError(f"{option}={column!r} of reward {reward!r} is not the name of a data column")


def gold_answer(reward: str, columns: Mapping[str, Any], answer_key: str | None) -> Any:
    """The gold answer of an item: its column ``answer_key``, else ``answer``, else ``label``.

    Raises:
        ValueError: there is none, or it is None.
    """
    keys = (answer_key,) if answer_key is not None else ("answer", "label")
    for key in keys:
        if columns.get(key) is not None:
            return columns[key]
    raise ValueError(f"reward {reward!r} needs a gold answer; the item has none in the column {' or '.join(keys)}")


def argument_signature(answer_key: str | None, optional: Iterable[str]) -> inspect.Signature:
    """The signature of a reward whose columns are options, so that it is sent only what it takes.

    Args:
        answer_key: the column of the gold answer; None: ``answer`` or ``label``.
        optional: further arguments.
    """
    kind = inspect.Parameter.KEYWORD_ONLY
    required = ("completions",) if answer_key is None else ("completions", answer_key)
    golds = ("answer", "label") if answer_key is None else ()
    parameters = [inspect.Parameter(name, kind) for name in required]
    parameters += [inspect.Parameter(name, kind, default=None) for name in (*golds, *optional) if name not in required]
    return inspect.Signature(parameters)


def _range(low: float, high: float) -> str:
    if high == math.inf:
        return f"at least {low:g}"
    return f"at most {high:g}" if low == -math.inf else f"between {low:g} and {high:g}"
