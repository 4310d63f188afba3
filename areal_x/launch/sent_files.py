"""References to a user's files (``file.py:name``) on their way to another machine: the files travel with them.

A file may import its neighbours, so all Python files of its folder go, too; folders below it do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import split_library

__all__ = ["pack_files", "unpack_files", "with_absolute_paths"]

_MAX_BYTES = 16 * 2**20
_MARK = "<sent>"


def pack_files(config: ExperimentConfig) -> tuple[ExperimentConfig, list[dict[str, bytes]]]:
    """The configuration as it travels, and for each folder that it refers to its Python files by name.

    What else it names by a path, the other machine has to see there.

    Raises:
        ConfigError: a folder's Python files are too large to be sent.
    """
    folders: list[Path] = []
    contents: list[dict[str, bytes]] = []

    def change(spec: str) -> str:
        library, path = split_library(spec)
        file, _, name = path.partition(":")
        if not file.endswith(".py"):
            return spec
        folder = Path(file).expanduser().resolve().parent
        if folder not in folders:
            folders.append(folder)
            contents.append(_python_files(folder))
        sent = f"{_MARK}{folders.index(folder)}/{Path(file).name}:{name}"
        return f"{library}:{sent}" if library else sent

    return with_absolute_paths(_with_references(config, change)), contents


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with what it names by a relative path named in full: other processes have another working
    directory, on another machine or not. What does not exist here, such as a name on the hub, stays."""
    config = copy.deepcopy(config)
    config.runs_dir = str(Path(config.runs_dir).expanduser().absolute())
    if config.resume not in ("never", "auto"):
        config.resume = str(Path(config.resume).expanduser().absolute())
    rewarding = [config.reward_model, *config.reward_models.values()]
    owners: list[tuple[object, str]] = [
        (owner, "path") for owner in (config.data, config.sft, config.model, *rewarding)
    ]
    owners += [(config.data, "eval_path"), (config.preferences, "path"), (config.preferences, "eval_path")]
    for owner, key in owners:
        value = getattr(owner, key)
        if value is not None and Path(value).expanduser().exists():
            setattr(owner, key, str(Path(value).expanduser().absolute()))
    return config


def unpack_files(config: ExperimentConfig, contents: list[dict[str, bytes]], target: Path) -> ExperimentConfig:
    """Write the files below ``target``; the configuration that refers to them there."""
    for number, files in enumerate(contents):
        folder = target / str(number)
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return _with_references(config, lambda spec: spec.replace(_MARK, f"{target}/"))


def _with_references(config: ExperimentConfig, change: Callable[[str], str]) -> ExperimentConfig:
    config = copy.deepcopy(config)
    config.workflow.path = change(config.workflow.path)
    for owner, key in (
        (config.reward, "fn"),
        (config.reward, "post_process"),
        (config.rollout, "filter"),
        (config.rollout, "early_filter"),
        *((part, "fn") for part in config.reward.rewards.values()),
    ):
        spec = getattr(owner, key)
        if spec is not None:
            setattr(owner, key, change(spec))
    return config


def _python_files(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.py")) if path.is_file()}
    size = sum(map(len, files.values()))
    if size > _MAX_BYTES:
        raise ConfigError(
            f"{folder}: its Python files have {size / 2**20:.0f} MiB, and {_MAX_BYTES / 2**20:.0f} MiB are sent to a "
            "cluster; move those of the run to a folder of their own"
        )
    return files
