"""Completions that the user brings: from a file of rows, or as a list."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from areal_x.api.errors import DataError
from areal_x.launch.reward_check.options import CheckOptions
from areal_x.launch.reward_check.samples import CheckData, PromptTexts, Sample

__all__ = ["read_samples"]

_GOLD_SCORES = ("expected", "reward")
_TEXTS = ("completions", "completion", "response")
Located = Iterable[tuple[str, Mapping[str, Any]]]


def read_samples(
    completions: str | Path | Sequence[str | Mapping[str, Any]],
    data: CheckData,
    texts: PromptTexts,
    options: CheckOptions,
) -> list[Sample]:
    """The completions with the items they belong to: by ``id_key`` where both have it, else the n-th row's to the n-th.

    A row has ``completion`` (or ``response``), or a list ``completions``; where known, ``expected`` or ``reward`` with
    the score of each, and ``truncated``.

    Raises:
        DataError: a row lacks its text, its scores are not numbers or not as many, or it belongs to no item.
    """
    located = list(_located(completions))
    if not located:
        raise DataError(f"{completions}: holds no completions")
    by_id = {row[options.id_key]: number for number, row in enumerate(data.rows) if _has_id(row, options.id_key)}
    samples: list[Sample] = []
    for number, (place, row) in enumerate(located[: options.limit]):
        item = _item(place, row, number, by_id, len(data.rows), options.id_key)
        columns = {name: value for name, value in data.rows[item].items() if name != data.prompt_key}
        prompt = texts.prompt(data.rows[item])
        found = _texts(place, row)
        for text, expected in zip(found, _scores(place, row, len(found)), strict=True):
            truncated = bool(row.get("truncated", False))
            samples.append(Sample(item, "file", prompt, text, columns, expected, True, truncated))
    return samples


def _located(completions: str | Path | Sequence[str | Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(completions, str | Path):
        from areal_x.rollout.data_files import read_rows

        yield from read_rows(Path(completions).expanduser())
        return
    for number, entry in enumerate(completions):
        yield f"completions[{number}]", entry if isinstance(entry, Mapping) else {"completion": entry}


def _has_id(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(row.get(key), str | int)


def _item(place: str, row: Mapping[str, Any], number: int, by_id: dict[Any, int], num_items: int, id_key: str) -> int:
    if by_id and _has_id(row, id_key):
        item = by_id.get(row[id_key])
        if item is None:
            raise DataError(f"{place}: no item of the data has {id_key}={row[id_key]!r}")
        return item
    if number >= num_items:
        raise DataError(
            f"{place}: the data has {num_items} items only; give one row for each item in order, or a column {id_key!r}"
        )
    return number


def _texts(place: str, row: Mapping[str, Any]) -> list[str]:
    key = next((key for key in _TEXTS if key in row), None)
    if key is None:
        raise DataError(f"{place}: no column 'completion' or 'completions', only {', '.join(map(str, row))}")
    value = row[key]
    found = value if isinstance(value, list) else [value]
    for text in found:
        if not isinstance(text, str):
            raise DataError(f"{place}: column {key!r} holds a {type(text).__name__}, expected text")
    return found


def _scores(place: str, row: Mapping[str, Any], wanted: int) -> list[float | None]:
    key = next((key for key in _GOLD_SCORES if row.get(key) is not None), None)
    if key is None:
        return [None] * wanted
    values = row[key] if isinstance(row[key], list) else [row[key]] * wanted
    if len(values) != wanted:
        raise DataError(f"{place}: column {key!r} has {len(values)} scores for {wanted} completions")
    for value in values:
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise DataError(f"{place}: column {key!r} holds {value!r}, expected a number")
    return [None if value is None else float(value) for value in values]
