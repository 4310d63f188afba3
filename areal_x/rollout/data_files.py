"""Rows of JSON-lines, JSON, CSV and parquet files. Whatever is wrong is named by file and line (or row)."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from areal_x.api.errors import DataError

__all__ = ["FILE_SUFFIXES", "read_rows", "read_texts"]

Row = dict[str, Any]
Located = Iterator[tuple[str, Row]]
_logger = logging.getLogger("areal_x.data")
_BOM = b"\xef\xbb\xbf"


def read_rows(path: Path) -> Located:
    """Each row of a file with its place (``train.jsonl:12``), in the file's order.

    Raises:
        DataError: the file is missing, empty, a folder, of an unknown kind, or one of its lines is broken. (The
            last line of a file that was cut off is left out, with a warning.)
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file in it")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file; its name must end in one of {', '.join(FILE_SUFFIXES)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_texts(path: Path, columns: Sequence[str] | None = None) -> Iterator[str]:
    """All text in the named columns of a file, chat messages included; all columns by default.

    Raises:
        DataError: as in ``read_rows``, or a row lacks one of ``columns``.
    """
    for place, row in read_rows(path):
        for column in columns if columns is not None else row:
            if column not in row:
                raise DataError(f"{place}: has no column {column!r}; it has: {', '.join(row)}")
            yield from _strings(row[column])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _parse_json(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{place}: not JSON: {error.msg} ({where})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise DataError(f"{place}: not usable JSON: nested too deeply") from error
    except ValueError as error:
        raise DataError(f"{place}: not usable JSON: {error}") from error


def _require_object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
        raise DataError(f"{place}: expected an object of columns, found {kind}")
    return value


def _read_json_lines(path: Path) -> Located:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                value = _parse_json(line.rstrip(b"\r\n"), place)
            except DataError as error:
                if line.endswith(b"\n") or number == 1:
                    raise
                # A copy that was cut off has one broken line, its last; all that came before is whole.
                _logger.warning("%s; the file ends in the middle of this line, which is left out", error)
                return
            yield place, _require_object(value, place)


def _read_json(path: Path) -> Located:
    """A list of objects. A file of JSON lines that is called ``.json`` is read as what it is."""
    text = path.read_bytes().removeprefix(_BOM)
    if text.lstrip().startswith(b"{"):
        yield from _read_json_lines(path)
        return
    value = _parse_json(text, str(path))
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list of objects")
    for number, row in enumerate(value, start=1):
        place = f"{path}, entry {number}"
        yield place, _require_object(row, place)


def _read_csv(path: Path) -> Located:
    # The default limit of 128 KiB for one field would refuse long documents.
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError(f"{path}:1: a column's name stands twice in the header: {', '.join(header)}")
            for fields in reader:
                place = f"{path}:{reader.line_num}"
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DataError(f"{place}: {len(fields)} fields, but the header names {len(header)} columns")
                yield place, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 after line {reader.line_num}: {error.reason}") from error


def _read_parquet(path: Path) -> Located:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not parquet: {str(error).splitlines()[0]}") from error


_READERS: dict[str, Callable[[Path], Located]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
FILE_SUFFIXES = tuple(_READERS)
"""Ends of file names that can be read."""
