"""The configuration's keys, read from the dataclasses: what exists, what is nearest, and where a YAML file says it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError

__all__ = [
    "check_key",
    "check_yaml_keys",
    "entry_of_key",
    "free_form_root",
    "line_of_key",
    "nearest",
    "valid_keys",
]


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    """Name to type of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _is_free_form(annotation: Any) -> bool:
    """Whether a field is a mapping whose keys the schema does not know (``dict[str, Any]``, optional or not)."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return any(typing.get_origin(option) is dict for option in options) and _entry_type(annotation) is None


def _entry_type(annotation: Any) -> type | None:
    """The dataclass of the entries, where a field is a mapping from names to sections (``reward.rewards``)."""
    values = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is dict else ()
    return values[0] if values and dataclasses.is_dataclass(values[0]) and isinstance(values[0], type) else None


def valid_keys(prefix: str = "", cls: type = ExperimentConfig) -> Iterator[str]:
    """Every dotted key of the configuration, sections included; ``*`` stands for a name of the user's."""
    for name, annotation in _fields(cls).items():
        yield prefix + name
        if (entry := _entry_type(annotation)) is not None:
            yield f"{prefix}{name}.*"
            yield from valid_keys(f"{prefix}{name}.*.", entry)
        if dataclasses.is_dataclass(annotation):
            yield from valid_keys(f"{prefix}{name}.", typing.cast(type, annotation))


def _walk_key(key: str) -> Iterator[tuple[str, Any]]:
    """Each part of a dotted key, ``*`` for a user's name, with its type; ends behind the first that is no section."""
    cls: Any = ExperimentConfig
    parts = iter(key.split("."))
    for part in parts:
        annotation = _fields(typing.cast(type, cls)).get(part) if dataclasses.is_dataclass(cls) else None
        yield part, annotation
        if (entry := _entry_type(annotation)) is not None:
            if next(parts, None) is None:
                return
            yield "*", entry
            annotation = entry
        if not dataclasses.is_dataclass(annotation):
            break
        cls = annotation
    yield from ((part, None) for part in parts)


def free_form_root(key: str) -> str | None:
    """The free-form mapping that ``key`` lies in (``workflow.kwargs`` for ``workflow.kwargs.max_turns``), or None."""
    parts = key.split(".")
    for depth, (_, annotation) in enumerate(_walk_key(key), start=1):
        if depth < len(parts) and _is_free_form(annotation):
            return ".".join(parts[:depth])
    return None


def entry_of_key(key: str) -> tuple[str, type] | None:
    """The user-named section that ``key`` is or lies in (``reward.rewards.style``), with its dataclass, or None."""
    parts = key.split(".")
    for depth, (part, annotation) in enumerate(_walk_key(key), start=1):
        if part == "*":
            return ".".join(parts[:depth]), annotation
    return None


def _is_section(key: str) -> bool:
    """Whether a key that exists holds keys of its own."""
    *_, (_, annotation) = _walk_key(key)
    return dataclasses.is_dataclass(annotation) or _entry_type(annotation) is not None


def nearest(word: str, choices: list[str]) -> str:
    """`` (did you mean X?)``, or a list of what is valid when nothing is close and the list is short."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; valid: {', '.join(sorted(choices))}" if len(choices) <= 16 else ""


def _hint(key: str) -> str:
    """The nearest valid key: among its siblings first, then a key of that last name in another section."""
    parent, _, leaf = key.rpartition(".")
    everything = list(valid_keys())
    prefix = f"{parent}." if parent else ""
    siblings = [k for k in everything if k.startswith(prefix) and "." not in k[len(prefix) :]]
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
    close = close or difflib.get_close_matches(key, everything, n=1, cutoff=0.85)
    elsewhere = [k for k in everything if k.rpartition(".")[2] == leaf and "." in k]
    if close:
        return f"; did you mean {close[0]}?"
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    if siblings:
        return nearest(leaf, [sibling.rpartition(".")[2] for sibling in siblings])
    return nearest(key, everything)


def check_key(key: str, where: str = "", groups: frozenset[str] = frozenset()) -> None:
    """Raise if the configuration has no such dotted key.

    Args:
        key: a dotted key, without Hydra's ``+`` and ``~``.
        where: put before the message (a file and line, or the override).
        groups: names of preset folders, which are valid keys too.

    Raises:
        ConfigError: names the key and the nearest valid one.
    """
    if key in groups or free_form_root(key) is not None:
        return
    if ".".join(part for part, _ in _walk_key(key)) not in set(valid_keys()):
        raise ConfigError(f"{where}unknown key {key!r}{_hint(key)}")


def _load_nodes(path: Path) -> yaml.Node | None:
    """The file as nodes that know their lines.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or its top is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected a mapping of keys at the top of the file")
    return node


def _walk(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int, bool, bool]]:
    """Each key as (dotted path, line from 1, whether the file wrote a dot in it, whether its value is a scalar).

    The keys of free-form mappings are not descended into.
    """
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        yield key, key_node.start_mark.line + 1, "." in key_node.value, isinstance(value_node, yaml.ScalarNode)
        if not (isinstance(value_node, yaml.MappingNode) and free_form_root(f"{key}.x")):
            yield from _walk(value_node, f"{key}.")


def check_yaml_keys(path: Path, package: str = "") -> None:
    """Raise if a configuration file has a key that does not exist, or one twice.

    Args:
        path: the file.
        package: the section that a preset's keys belong to (``algorithm``), empty for a whole configuration.

    Raises:
        ConfigError: names file, line and key.
    """
    seen: dict[str, int] = {}
    prefix = f"{package}." if package else ""
    for key, line, is_dotted, is_scalar in _walk(_load_nodes(path), prefix):
        if key.removeprefix(prefix) == "defaults":
            continue
        if key in seen:
            raise ConfigError(f"{path}:{line}: {key!r} stands here and on line {seen[key]}; keep one of them")
        seen[key] = line
        if is_dotted:
            raise ConfigError(
                f"{path}:{line}: {key!r}: a file nests its keys; write {key.partition('.')[0]}: and indent the rest"
            )
        check_key(key, f"{path}:{line}: ")
        if is_scalar and _is_section(key):
            raise ConfigError(f"{path}:{line}: {key}: expected a section with keys of its own, not a single value")


def line_of_key(path: Path, key: str, package: str = "") -> int | None:
    """The line on which a file sets a dotted key, or None."""
    key = key.partition("[")[0]
    prefix = f"{package}." if package else ""
    return next((line for found, line, *_ in _walk(_load_nodes(path), prefix) if found == key), None)
