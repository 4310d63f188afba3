"""From a shipped name or a user's file, and overrides, to a checked ``ExperimentConfig``.

Hydra's compose API does the work, over the dataclasses of ``areal_x.api.config``. The ``@hydra.main`` entry is not
used: it would change the working directory, set up logging and leave an ``outputs`` folder behind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.launch.compose_errors import explain
from areal_x.launch.config_files import config_groups, configs_dir, find_config
from areal_x.launch.option_owners import drop_inherited_options
from areal_x.launch.schema import check_key, check_yaml_keys, entry_of_key, free_form_root

__all__ = ["ConfigSource", "compose_config", "compose_tree", "expand_sweep", "parse_override", "to_yaml"]

_SCHEMA = "areal_x_schema"
_PRIMARY = "areal_x_run"
_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError, AssertionError, RecursionError)
"""What Hydra raises for a file that is wrong; the last three come from its handling of defaults lists."""
_NOT_IN_DEFAULTS = re.compile(r"Could not override '(\w+)'. No match in the defaults list")
_OVERRIDE = re.compile(r"^(\+{0,2}|~)([A-Za-z_][\w./@:]*)=(.*)$", re.DOTALL)


@dataclass(frozen=True)
class ConfigSource:
    """Which file to begin with: a shipped configuration's name, or a user's own file."""

    path: Path
    shipped: bool = field(default=False)

    @classmethod
    def named(cls, name: str) -> ConfigSource:
        """A configuration that ships with the package."""
        return cls(find_config(name), shipped=True)

    @classmethod
    def file(cls, path: str | Path) -> ConfigSource:
        """A user's own file; its ``defaults`` may name shipped presets and files beside it.

        Raises:
            ConfigError: the file is missing, is a folder, or does not end in ``.yaml``.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a .yaml file in it")
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; shipped configs are chosen by --config-name")
        if path.suffix != ".yaml":
            raise ConfigError(f"{path}: a configuration file's name must end in .yaml")
        return cls(path.resolve())


def parse_override(text: str) -> Override:
    """Parse one ``key=value``, a value that Hydra's grammar does not take (``a=b``, ``f(x``) being taken as text.

    Raises:
        ConfigError: there is no ``=``, or a list or a mapping is not closed.
    """
    parser = OverridesParser.create()
    match = _OVERRIDE.match(text)
    if match is None:
        if text.startswith("~"):
            return _parse_or_fail(parser, text)
        raise ConfigError(f"not an override: {text!r}; write key=value")
    try:
        return parser.parse_overrides([text])[0]
    except HydraException as error:
        sign, key, value = match.groups()
        if value[:1] in "[{'\"":
            raise ConfigError(f"{key}: cannot read the value {value!r}: {_first_line(error)}") from error
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return _parse_or_fail(parser, f"{sign}{key}='{escaped}'")


def _parse_or_fail(parser: OverridesParser, text: str) -> Override:
    try:
        return parser.parse_overrides([text])[0]
    except HydraException as error:
        raise ConfigError(f"not an override: {text!r}; write key=value ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """All combinations of swept overrides (``key=a,b,c``, ``key=range(1,4)``), the last key changing fastest.

    Raises:
        ConfigError: an override is not ``key=value``.
    """
    combinations: list[list[str]] = [[]]
    for text in overrides:
        override = parse_override(text)
        sign = text[: len(text) - len(text.lstrip("+"))]
        if override.is_sweep_override():
            values = [f"{sign}{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        else:
            values = [override.input_line or text]
        combinations = [[*before, value] for before in combinations for value in values]
    return combinations


def _store_primary(source: ConfigSource) -> None:
    """The primary configuration: first the typed schema, then the file, which so need not name a schema."""
    store = ConfigStore.instance()
    store.store(name=_SCHEMA, node=ExperimentConfig)
    store.store(name=_PRIMARY, node={"defaults": [_SCHEMA, source.path.stem, "_self_"]})


def _split_overrides(overrides: Sequence[str], groups: frozenset[str]) -> tuple[list[str], list[Override]]:
    """Overrides for Hydra, and those of keys below names of the user's, which Hydra would only take with a ``+``."""
    for_hydra: list[str] = []
    free_form: list[Override] = []
    for text in overrides:
        override = parse_override(text)
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.key_or_group}: several values ({text!r}); "
                "add --multirun to run each, or write a list as [a,b]"
            )
        key = override.key_or_group.partition("@")[0]
        check_key(key, f"{text}: ", groups)
        if override.is_delete() and key not in groups:
            raise ConfigError(f"{text}: a key cannot be removed; give it another value")
        if free_form_root(f"{key}.x") is not None or entry_of_key(f"{key}.x") is not None:
            free_form.append(override)
        else:
            for_hydra.append(override.input_line or text)
    return for_hydra, free_form


def _quoted(path: Path) -> str:
    escaped = path.as_posix().replace("\\", "\\\\").replace('"', '\\"')
    return f'"file://{escaped}"'


def compose_tree(source: ConfigSource, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose against the schema. Required values may still be missing (``???``).

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a preset that does not exist.
    """
    folder = source.path.parent
    groups = frozenset(config_groups(folder))
    for_hydra, free_form = _split_overrides(overrides, groups)
    check_yaml_keys(source.path)
    _store_primary(source)
    search = f"hydra.searchpath=[{_quoted(configs_dir())}]"
    try:
        tree = _compose_with_groups(folder, [search, *for_hydra])
    except _COMPOSITION_ERRORS as error:
        raise explain(error, source.path) from error
    OmegaConf.set_struct(tree, False)
    overridden = [parse_override(text).key_or_group for text in for_hydra]
    drop_inherited_options(tree, source.path, [*overridden, *(override.key_or_group for override in free_form)])
    try:
        for override in free_form:
            _apply_free_form(tree, override)
    except _COMPOSITION_ERRORS as error:
        raise explain(error, source.path) from error
    return tree


class _GroupNotInDefaults(Exception):
    """An override chose a preset of a group that no defaults list names."""

    def __init__(self, group: str) -> None:
        super().__init__(group)
        self.group = group


def _compose_with_groups(folder: Path, overrides: list[str]) -> DictConfig:
    """Preset folders that the file's defaults do not name are added, so that algorithm=X means the same everywhere."""
    while True:
        try:
            return _compose_once(folder, overrides)
        except _GroupNotInDefaults as missing:
            overrides = [f"+{text}" if text.startswith(f"{missing.group}=") else text for text in overrides]


def _compose_once(folder: Path, overrides: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
            return compose(_PRIMARY, overrides=overrides)
    except HydraException as error:
        group = _NOT_IN_DEFAULTS.match(str(error))
        if group:
            raise _GroupNotInDefaults(group.group(1)) from error
        raise


def _apply_free_form(tree: DictConfig, override: Override) -> None:
    key, value = override.key_or_group, override.value()
    if free_form_root(key) is None and entry_of_key(key) is None and entry_of_key(f"{key}.x") is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{key}={value}: expected named sections, such as {{accuracy: {{weight: 1.0}}}}")
        OmegaConf.update(tree, key, {}, merge=False)
        for name, entry in value.items():
            _update_below_names(tree, f"{key}.{name}", entry)
    else:
        _update_below_names(tree, key, value)


def _update_below_names(tree: DictConfig, key: str, value: Any) -> None:
    """Set a key that lies in a free-form mapping, or in a section that the user named."""
    entry = entry_of_key(key)
    if entry is not None and OmegaConf.select(tree, entry[0]) is None:
        OmegaConf.update(tree, entry[0], OmegaConf.structured(entry[1]), force_add=True)
    root = free_form_root(key)
    if root is not None and OmegaConf.select(tree, root) is None:
        OmegaConf.update(tree, root, {}, merge=False)
    OmegaConf.update(tree, key, value, merge=entry is not None and root is None, force_add=True)


def compose_config(
    source: ConfigSource, overrides: Sequence[str] = (), *, unused: Sequence[str] = ()
) -> ExperimentConfig:
    """The configuration of one run as the dataclasses, every required value set.

    Args:
        unused: keys of text that the run does not look at: empty where they are missing.

    Raises:
        ConfigError: as ``compose_tree``; or a required value is missing.
    """
    tree = compose_tree(source, overrides)
    try:
        for key in OmegaConf.missing_keys(tree).intersection(unused):
            OmegaConf.update(tree, key, "")
        missing = sorted(OmegaConf.missing_keys(tree))
        if missing:
            key, file = missing[0], source.path.name
            raise ConfigError(f"{key} is not set; add {key}=VALUE to the command or to {file}")
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise explain(error, source.path) from error
    assert isinstance(config, ExperimentConfig)
    return config


def to_yaml(config: ExperimentConfig | DictConfig) -> str:
    """The resolved configuration as YAML, complete: it can be run again as a file."""
    tree = config if isinstance(config, DictConfig) else OmegaConf.structured(config)
    return OmegaConf.to_yaml(tree, resolve=True)
