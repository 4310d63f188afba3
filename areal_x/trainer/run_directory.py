"""Where a run writes. An earlier run is never overwritten unless asked."""

from __future__ import annotations

import shutil
from pathlib import Path

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError

__all__ = ["create_run_directory"]

MAX_NUMBERED_RUNS = 10_000


def create_run_directory(config: ExperimentConfig) -> Path:
    """Make and return ``runs/<name>``, or ``runs/<name>-2``, ``-3``, ... when that exists and ``overwrite`` is false.

    Only a directory that holds an earlier run's ``config.yaml`` (or nothing) is ever replaced.
    """
    wanted = config.run_dir
    if config.overwrite and wanted.exists():
        if any(wanted.iterdir()) and not (wanted / "config.yaml").exists():
            raise ConfigError(f"overwrite=true, but {wanted} holds no run (no config.yaml); choose another name")
        shutil.rmtree(wanted)
    for number in range(1, MAX_NUMBERED_RUNS):
        directory = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory
    raise ConfigError(f"{wanted} and {MAX_NUMBERED_RUNS} numbered directories exist; set name= or overwrite=true")
