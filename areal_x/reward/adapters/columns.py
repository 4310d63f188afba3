"""Finds in a data item's columns what a library's function expects under a name of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from areal_x.api.errors import DataError

__all__ = ["check_label_key", "label_of", "refuse_shadowed"]


def check_label_key(columns: Collection[str], key: str | None) -> None:
    """``reward.kwargs.label_key`` must be a column.

    Raises:
        DataError: it is none.
    """
    if key is not None and key not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise DataError(f"reward.kwargs.label_key={key!r} is no column of the data; it has: {known}")


def label_of(data: Mapping[str, Any], key: str | None, defaults: Sequence[str]) -> tuple[str | None, Any]:
    """The column that holds the gold answer, and its value; ``(None, None)`` if there is none.

    Args:
        data: the item's columns.
        key: ``reward.kwargs.label_key``; None: the first of ``defaults`` that the data has.
        defaults: names of columns.

    Raises:
        DataError: ``key`` is given, and the data has no such column.
    """
    check_label_key(data, key)
    for name in defaults if key is None else (key,):
        if name in data:
            return name, data[name]
    return None, None


def refuse_shadowed(columns: Collection[str], arguments: Collection[str], function: str) -> None:
    """A column must not have the name of an argument.

    Raises:
        DataError: one has.
    """
    for name in arguments:
        if name in columns:
            raise DataError(f"column {name!r} of the data has the name of an argument of {function}; rename or drop it")
