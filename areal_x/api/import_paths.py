"""Finds the object that a configuration names: ``package.module:name``, ``package.module.name`` or ``file.py:name``."""

from __future__ import annotations

import importlib
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.process_pool import function_transfer
from areal_x.process_pool.errors import FunctionTransferError

__all__ = [
    "LIBRARIES",
    "check_library",
    "is_import_path",
    "load_object",
    "nearest",
    "split_library",
]

LIBRARIES = ("areal", "openrlhf", "slime", "trl", "verl")
"""Libraries whose reward functions run as they are: ``slime:pkg.mod.fn``."""


def nearest(name: str, valid: list[str]) -> str:
    """``; did you mean 'x'?`` for the nearest valid name, else an empty string."""
    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def split_library(spec: str) -> tuple[str | None, str]:
    """``slime:pkg.mod.fn`` as ``("slime", "pkg.mod.fn")``; any other name as ``(None, name)``."""
    library, colon, rest = spec.partition(":")
    return (library, rest) if colon and library in LIBRARIES else (None, spec)


def check_library(spec: str, key: str) -> None:
    """``NAME:file.py``, ``NAME:file.py:function`` and ``NAME:module:function`` need a library as NAME.

    Raises:
        ConfigError: NAME is none of ``LIBRARIES``.
    """
    prefix, colon, rest = spec.partition(":")
    is_prefix = colon and not set(prefix) & set("./\\~") and (":" in rest or ".py" in rest)
    if is_prefix and prefix not in LIBRARIES and not Path(spec.rpartition(":")[0]).is_file():
        raise ConfigError(f"{key}={spec!r}: {_no_library(prefix)}")


def _no_library(prefix: str) -> str:
    return f"{prefix!r} is none of the libraries {', '.join(LIBRARIES)}{nearest(prefix.lower(), list(LIBRARIES))}"


def is_import_path(spec: str) -> bool:
    """Whether ``spec`` is written as an import path rather than as a registered name."""
    return ":" in spec or "." in spec


def load_object(spec: str, key: str) -> Any:
    """Import what ``spec`` names, so that its functions and classes can also be sent to worker processes.

    Args:
        spec: ``package.module:name``, ``package.module.name`` or ``folder/file.py:name``. A file may import its
            neighbours: its folder is put at the end of ``sys.path``.
        key: the configuration key that holds ``spec``, for error messages.

    Raises:
        ConfigError: no such file, module or name; or the module raised when it was imported, which the message tells
            with file and line. Its own error is the cause.
    """
    check_library(spec, key)
    module_name = spec.rpartition(":")[0]
    if not module_name and spec.endswith(".py"):
        raise ConfigError(f"{key}={spec!r} names a file only; write {spec}:name")
    if module_name.endswith(".py"):
        folder = str(Path(module_name).expanduser().resolve().parent)
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        return function_transfer.import_function(spec)
    except FunctionTransferError as error:
        prefix = spec.partition(":")[0]
        misspelt = "." in spec.partition(":")[2] and nearest(prefix.lower(), list(LIBRARIES)) != ""
        hint = f"; {_no_library(prefix)}" if misspelt else ""
        raise ConfigError(f"{key}={spec!r}: {_place(error.__cause__)}{error}{hint}") from error
    except (Exception, SystemExit) as error:
        # The boundary of the user's module: importing it runs code of theirs, which may raise anything.
        lines = str(error).splitlines() or ["no message"]
        if isinstance(error, SyntaxError) and error.msg:
            lines = [error.msg]
        raise ConfigError(f"{key}={spec!r}: {_place(error)}{type(error).__name__}: {lines[0]}") from error


def _place(error: BaseException | None) -> str:
    """``file:line: `` where importing a module went wrong, or nothing when none of its lines was reached."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_from_here(error.filename)}:{error.lineno}: "
    machinery = (__file__, function_transfer.__file__, importlib.__file__)
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    frames = [frame for frame in frames if frame.filename not in machinery and not frame.filename.startswith("<frozen")]
    return f"{_from_here(frames[-1].filename)}:{frames[-1].lineno}: " if frames else ""


def _from_here(file: str) -> str:
    """A file in the working directory by its path from there."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
