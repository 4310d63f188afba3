"""Loads what ``data`` of the configuration names: a file, a data set on the hub, or one that is made on the spot."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from areal_x.api.config import DataConfig
from areal_x.api.data_file_checks import names_a_file
from areal_x.api.errors import ConfigError, DataError
from areal_x.api.import_paths import load_object, nearest
from areal_x.rollout.arithmetic import arithmetic_items
from areal_x.rollout.data_files import read_rows
from areal_x.rollout.hub import find_held_out_split, read_hub_rows

__all__ = [
    "DATA_SETS",
    "DatasetFactory",
    "Items",
    "Located",
    "dataset_name",
    "load_dataset_items",
    "load_evaluation_items",
    "read_split",
]

Row = dict[str, Any]
DatasetFactory = Callable[..., Iterable[Row]]
"""``factory(split, **data.kwargs)`` gives the rows; ``split`` is ``train`` or ``eval``."""

DATA_SETS: dict[str, DatasetFactory] = {"arithmetic": arithmetic_items}
"""Data sets that are made on the spot, by the name that ``data.path`` gives. Others: ``package.module:factory``."""

_SPLIT_STEMS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_HELD_OUT_STEMS = ("test", "validation", "valid", "val", "dev", "eval")


@dataclass(frozen=True)
class Items(Sequence[Row]):
    """The rows of one split, the data set's name (which selects the built-in reward), and where the rows come from."""

    rows: list[Row]
    name: str
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def dataset_name(data: DataConfig) -> str:
    """``data.name``, or what it defaults to.

    That is the hub's base name (``gsm8k`` of ``openai/gsm8k``), a file's stem, or for a file called after a split
    (``train.jsonl``) the name of its folder.
    """
    if data.name:
        return data.name
    if data.path in DATA_SETS:
        return data.path
    if _is_factory(data.path):
        return data.path.rpartition(":")[2]
    if names_a_file(data.path):
        path = Path(data.path).expanduser().resolve()
        return path.parent.name if path.stem.lower() in _SPLIT_STEMS and path.parent.name else path.stem
    return data.path.rpartition("/")[2]


def _is_factory(path: str) -> bool:
    """Whether ``data.path`` is an import path (``package.module:factory`` or ``file.py:factory``)."""
    return ":" in path and not Path(path).expanduser().exists() and "//" not in path


def load_dataset_items(data: DataConfig, split: str = "train", *, columns: Sequence[str] = ()) -> Items:
    """Load and check one split.

    Args:
        data: ``data`` of the configuration. ``limit`` shortens the training split.
        split: ``train``, or ``eval`` for the held-out data: ``eval_path``, or else the split ``test`` (or
            ``validation``) beside ``train``. There may be none: the result is then empty.
        columns: columns that each row must have beside the prompt, such as the completion of supervised fine-tuning.

    Raises:
        DataError: a file or a line is wrong, a column is missing, a prompt is empty, an ``id`` stands twice.
        ConfigError: the arguments of a made data set are wrong.
    """
    located, source = read_split(data, split)
    limit = data.limit if split == "train" else None
    rows = _checked(located, data.prompt_key, columns, limit)
    if not rows and source:
        raise DataError(f"{source}: holds no items")
    return Items(rows, dataset_name(data), source)


def load_evaluation_items(data: DataConfig) -> Items:
    """Load and check a data set that is only measured: all of a file, the held-out items of one that is made, or
    ``split`` of one of the hub.

    Raises:
        DataError, ConfigError: as ``load_dataset_items``.
    """
    is_of_hub = data.path not in DATA_SETS and not _is_factory(data.path) and not names_a_file(data.path)
    return load_dataset_items(replace(data, eval_path=data.path), "train" if is_of_hub else "eval")


Located = Iterable[tuple[str, Row]]
"""Rows, each with its place (``train.jsonl:12``)."""


def read_split(data: DataConfig, split: str) -> tuple[Located, str]:
    """The rows of ``train`` or ``eval`` as they come, unchecked, and what they come from; none and "" where there is
    no held-out data.

    Raises:
        DataError: as ``load_dataset_items``, while the rows are read.
        ConfigError: the arguments of a made data set are wrong.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split is {split!r}; it must be train or eval")
    return _rows_of_train(data) if split == "train" else _rows_of_eval(data)


def _rows_of_train(data: DataConfig) -> tuple[Located, str]:
    if data.path in DATA_SETS or _is_factory(data.path):
        return _made_rows(data.path, "train", data.kwargs), data.path
    if names_a_file(data.path):
        return read_rows(Path(data.path).expanduser()), data.path
    return read_hub_rows(data.path, data.subset, data.split), f"{data.path} ({data.split})"


def _rows_of_eval(data: DataConfig) -> tuple[Located, str]:
    path = data.eval_path or data.path
    if path in DATA_SETS or _is_factory(path):
        return _made_rows(path, "eval", data.kwargs), path
    if names_a_file(path):
        file = Path(path).expanduser() if data.eval_path else _held_out_beside(Path(path).expanduser())
        return (read_rows(file), str(file)) if file else ((), "")
    if data.split != "train" and not data.eval_path:
        return (), ""
    split = find_held_out_split(path, data.subset)
    return (read_hub_rows(path, data.subset, split), f"{path} ({split})") if split else ((), "")


def _held_out_beside(train: Path) -> Path | None:
    """``test.jsonl`` (or ``validation``) beside ``train.jsonl``; ``x_test.jsonl`` beside ``x_train.jsonl``."""
    if not train.stem.lower().endswith("train"):
        return None
    head = train.stem[: -len("train")]
    if head and head[-1] not in "-_.":
        return None
    candidates = (train.with_name(f"{head}{stem}{train.suffix}") for stem in _HELD_OUT_STEMS)
    return next((path for path in candidates if path.is_file()), None)


def _made_rows(path: str, split: str, kwargs: dict[str, Any]) -> Located:
    factory = DATA_SETS[path] if path in DATA_SETS else load_object(path, "data.path")
    if not callable(factory):
        raise ConfigError(f"data.path={path}: is not a function that makes rows")
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name in parameters if name != "split"]
    for key in kwargs:
        if key not in named and not takes_any:
            raise ConfigError(f"data.kwargs.{key} is not an option of {path}{nearest(key, named)}")
    return ((f"{path}, row {number}", row) for number, row in enumerate(factory(split, **kwargs), start=1))


def _checked(located: Located, prompt_key: str, columns: Sequence[str], limit: int | None) -> list[Row]:
    rows: list[Row] = []
    places_of_ids: dict[str | int, str] = {}
    # Nothing behind the limit is read, so a file that is broken further on can still be used up to there.
    for place, row in itertools.islice(located, limit):
        _check_columns(row, place, prompt_key, columns)
        _check_prompt(row[prompt_key], place, prompt_key)
        identity = row.get("id")
        if isinstance(identity, str | int) and not isinstance(identity, bool):
            if identity in places_of_ids:
                raise DataError(f"{place}: id {identity!r} is also that of {places_of_ids[identity]}")
            places_of_ids[identity] = place
        rows.append(row)
    return rows


def _check_columns(row: Row, place: str, prompt_key: str, columns: Sequence[str]) -> None:
    if prompt_key not in row:
        known = ", ".join(map(str, row)) or "no columns"
        raise DataError(f"{place}: no column {prompt_key!r}, only {known}; set data.prompt_key to the prompt's column")
    for column in columns:
        if row.get(column) is None:
            raise DataError(f"{place}: no column {column!r}, only {', '.join(map(str, row))}")


def _check_prompt(prompt: Any, place: str, prompt_key: str) -> None:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{place}: the prompt (column {prompt_key!r}) is empty")
        return
    if not isinstance(prompt, list):
        kind = "null" if prompt is None else f"a {type(prompt).__name__}"
        raise DataError(f"{place}: the prompt (column {prompt_key!r}) is {kind}; expected text or a list of messages")
    if not prompt:
        raise DataError(f"{place}: the prompt (column {prompt_key!r}) holds no messages")
    for number, message in enumerate(prompt, start=1):
        if not (isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message):
            raise DataError(f"{place}: message {number} of the prompt is not an object with role and content")
