"""Hydra's and OmegaConf's errors as one line that names file, line, key, value and what would be valid."""

from __future__ import annotations

import re
from pathlib import Path

from areal_x.api.errors import ConfigError
from areal_x.launch.config_files import config_groups, config_names, configs_dir, preset_package
from areal_x.launch.schema import check_key, line_of_key, nearest

__all__ = ["explain"]

_IN_FILE = re.compile(r"^In '([^']+)'")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_VALUE = re.compile(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", re.DOTALL)
_NOT_FOUND = re.compile(r"Could not (?:find|load) '([^']+)'")
_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def explain(error: BaseException, source: Path) -> ConfigError:
    """The error of a composition that began with the file ``source``, as a ``ConfigError``.

    What is not recognised keeps its own first line, so nothing is hidden.
    """
    text = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, RecursionError):
        return ConfigError(f"{source}: its defaults name the file itself; give the file another name")
    not_found = _NOT_FOUND.search(text)
    if not_found:
        return _preset_not_found(not_found.group(1), source)
    if (dotted := _IN_FILE.match(text)) and dotted.group(1).startswith("."):
        return ConfigError(f"{source}: its defaults name a file with ./ before it; write the name alone")
    key_match = _FULL_KEY.search(text)
    key = key_match.group(1) if key_match else ""
    where = _location(text, key, source)
    if "is not in struct" in text or re.search(r"Key '[^']*' not in ", text):
        try:
            check_key(key, where)
        except ConfigError as unknown:
            return unknown
    value = _VALUE.search(text)
    if value:
        return ConfigError(f"{where}{key}: {value.group(1)!r} is not {_KINDS.get(value.group(2), value.group(2))}")
    boolean = re.search(r"Value '(.*)' is not a valid bool", text)
    if boolean:
        return ConfigError(f"{where}{key}: {boolean.group(1)!r} is not true or false")
    if "is not Optional" in text:
        return ConfigError(f"{where}{key}: null is not allowed here")
    if "Invalid type assigned" in text or "Cannot merge" in text:
        return ConfigError(f"{where}{key}: expected a section with keys of its own, not a single value")
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    first = (
        lines[1] if len(lines) > 1 and "raised while composing" in lines[0] else (lines or [type(error).__name__])[0]
    )
    return ConfigError(f"{where}{f'{key}: ' if key else ''}{first}")


def _location(text: str, key: str, source: Path) -> str:
    """``file:line: `` of the file that Hydra was reading, or nothing when an override was at fault."""
    in_file = _IN_FILE.match(text)
    if in_file is None:
        return ""
    name = in_file.group(1)
    is_preset = "/" in name
    for path in (source.parent / f"{name}.yaml", configs_dir() / f"{name}.yaml"):
        if path.is_file():
            line = line_of_key(path, key, preset_package(path) if is_preset else "")
            return f"{path}:{line}: " if line else f"{path}: "
    return ""


def _preset_not_found(name: str, source: Path) -> ConfigError:
    group, _, preset = name.rpartition("/")
    choices = config_groups(source.parent).get(group, []) if group else config_names()
    kind = f"preset {preset!r} of {group}" if group else f"config {preset!r}"
    return ConfigError(f"{_where_defaults_name(source, preset)}no {kind}{nearest(preset, choices)}")


def _where_defaults_name(source: Path, preset: str) -> str:
    """``file:line: `` where the file's ``defaults`` name the preset, or nothing when an override did."""
    name = re.compile(rf"(?<![\w.-]){re.escape(preset)}(?![\w.-])")
    in_defaults = False
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        content = line.partition("#")[0]
        if content[:1] not in ("", " ", "-", "]", "}"):
            in_defaults = content.startswith("defaults:")
        if in_defaults and name.search(content):
            return f"{source}:{number}: "
    return ""
