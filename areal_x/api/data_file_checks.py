"""Checks of files that hold data, before any is read."""

from __future__ import annotations

import os
from pathlib import Path

from areal_x.api.check_values import bad_value

__all__ = ["MADE_DATA_SETS", "check_data_file", "names_a_file", "searched"]

MADE_DATA_SETS = ("arithmetic",)
"""Data sets that are made on the spot, so that no file is looked for."""
_DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")


def names_a_file(path: str) -> bool:
    """Whether ``data.path`` names a file rather than a data set on the hub."""
    has_suffix = path.lower().endswith(_DATA_SUFFIXES)
    return has_suffix or path.startswith((".", "/", "~", "\\")) or path.count("/") > 1 or Path(path).exists()


def check_data_file(key: str, value: str | None) -> None:
    """Raise ``ConfigError`` where ``value`` names a file that cannot be read; names of data sets pass."""
    if value is None or value in MADE_DATA_SETS or not names_a_file(value) or ":" in value:
        return
    path = Path(value).expanduser()
    if path.is_dir():
        raise bad_value(key, value, "is a folder; name a file in it")
    if not path.exists():
        raise bad_value(key, value, f"no such file{searched(value)}")
    if path.stat().st_size == 0:
        raise bad_value(key, value, "the file is empty")
    if not os.access(path, os.R_OK):
        raise bad_value(key, value, "the file cannot be read")
    if not path.name.lower().endswith(_DATA_SUFFIXES):
        raise bad_value(key, value, f"must end in one of {', '.join(_DATA_SUFFIXES)}")


def searched(file: str) -> str:
    """Where a relative path was looked for."""
    path = Path(file).expanduser()
    return "" if path.is_absolute() else f" in {Path.cwd()}, the working directory, where relative paths begin"
