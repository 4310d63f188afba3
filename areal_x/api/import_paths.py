"""Finds the object that a configuration names: ``package.module:name``, ``package.module.name`` or ``file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from areal_x.api.errors import ConfigError

__all__ = ["is_import_path", "load_object", "nearest"]


def nearest(name: str, valid: list[str]) -> str:
    """``; did you mean 'x'?`` for the nearest valid name, else an empty string."""
    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def is_import_path(spec: str) -> bool:
    """Whether ``spec`` is written as an import path rather than as a registered name."""
    return ":" in spec or "." in spec


def load_object(spec: str, key: str) -> Any:
    """Import what ``spec`` names.

    A file is imported under its own stem, with its folder at the end of ``sys.path``: its functions then pickle by
    reference, as those of an installed package do.

    Args:
        spec: ``package.module:name``, ``package.module.name``, ``file.py:name`` or ``folder/file.py:name``.
        key: the configuration key that holds it, for error messages.

    Raises:
        ConfigError: no such file, module or name, or a file name that another module has.
    """
    module_name, colon, name = spec.rpartition(":")
    if not colon:
        module_name, _, name = spec.rpartition(".")
    if not module_name or not name:
        raise ConfigError(f"{key}={spec!r} is not an import path; write package.module:name or file.py:name")
    if module_name.endswith(".py"):
        module = _import_file(Path(module_name), f"{key}={spec!r}")
    elif name == "py":
        raise ConfigError(f"{key}={spec!r} names a file only; write {spec}:name")
    else:
        module = _import_module(module_name, f"{key}={spec!r}")
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_")]
            raise ConfigError(f"{key}={spec!r}: {module_name} has no {part!r}{nearest(part, names)}")
        found = getattr(found, part)
    return found


def _import_module(module_name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"{where}: no module named {error.name!r}; is its folder on PYTHONPATH?") from error
        raise


def _import_file(path: Path, where: str) -> ModuleType:
    file = path.expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"{where}: there is no file {file}")
    stem = file.stem
    if not stem.isidentifier():
        raise ConfigError(f"{where}: {file.name} cannot be imported; rename it to letters, digits and underscores")
    loaded = sys.modules.get(stem)
    origin = getattr(loaded, "__file__", None) if loaded is not None else _origin(stem)
    taken = loaded is not None or origin is not None
    if taken and (origin is None or not Path(origin).exists() or not Path(origin).samefile(file)):
        raise ConfigError(f"{where}: another module is named {stem!r} ({origin or 'built in'}); rename the file")
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()
    return importlib.import_module(stem)


def _origin(stem: str) -> str | None:
    spec = importlib.util.find_spec(stem)
    if spec is None:
        return None
    return spec.origin or "a package without a file"
