"""An append-only file of JSON lines that holds whole lines only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from areal_x.api.errors import ArealXError

__all__ = ["LineFile", "RunWriteError", "encode_line", "plain_value", "replace_file"]

_STRICT = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


class RunWriteError(ArealXError):
    """A file of the run directory could not be written."""


def plain_value(value: Any) -> Any:
    """``value`` as JSON can hold it: numpy scalars and arrays become Python's, NaN and infinities become None."""
    if isinstance(value, bool | str) or value is None or type(value) is int:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if hasattr(value, "tolist"):
        return plain_value(value.tolist())
    return str(value)


def encode_line(record: Mapping[str, Any]) -> str:
    """One JSON line without its end. Strict JSON: values that are not finite are written as ``null``."""
    try:
        return _STRICT.encode(record)
    except (TypeError, ValueError):
        return _STRICT.encode(plain_value(record))


class LineFile:
    """Appends lines with one system call for each batch of them, so no buffer of ours can be lost with the process.

    A half line that a killed process or a full disk left behind is cut off: at opening, and after a failed write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._cut_half_line()
        except OSError as error:
            raise _write_error(path, error) from error

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write ``records``, one line each, all of them or none.

        Raises:
            RunWriteError: the system refused, for example because the disk is full.
        """
        text = "".join([encode_line(record) + "\n" for record in records])
        if not text:
            return
        if self._descriptor < 0:
            raise RunWriteError(f"cannot write {self.path}: the run's writer is closed")
        data = memoryview(text.encode("utf-8", errors="backslashreplace"))
        before = os.fstat(self._descriptor).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise _write_error(self.path, error) from error

    def size(self) -> int:
        """Bytes written so far, in whole lines.

        Raises:
            RunWriteError: the system refused.
        """
        try:
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise _write_error(self.path, error) from error

    def sync(self) -> None:
        """Bring what was written to the disk; nothing once the file is closed.

        Raises:
            RunWriteError: the system refused.
        """
        if self._descriptor < 0:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _write_error(self.path, error) from error

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cut_half_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        end = size
        while end > 0:
            start = max(0, end - 65536)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._descriptor, end)


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old content or the new, never a part.

    Raises:
        RunWriteError: the system refused.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> RunWriteError:
    reason = error.strerror or str(error)
    return RunWriteError(f"cannot write {path}: {reason}; free some space or choose another runs_dir")
