"""Where a run writes. An earlier run is never overwritten unless asked."""

from __future__ import annotations

import fcntl
import glob
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError

__all__ = ["create_run_directory", "lock_directory", "numbered_directories"]

MAX_NUMBERED_RUNS = 10_000
_LOCK_SECONDS = 2.0


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
        directory = _numbered(wanted, number)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory
    raise ConfigError(f"{wanted} and {MAX_NUMBERED_RUNS} numbered directories exist; set name= or overwrite=true")


def lock_directory(directory: Path) -> IO[str]:
    """Keep other runs out of a directory until the returned file is closed, or this process ends.

    Raises:
        ConfigError: a run is under way in it. One that has just been killed gets a moment to end.
    """
    # Locks of this kind are not passed on to child processes, which may outlive this one for a moment.
    file = (directory / ".lock").open("a")
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                file.close()
                raise ConfigError(
                    f"another process is running in {directory}; end it, or choose another name"
                ) from None
            time.sleep(_LOCK_SECONDS / 20)
        else:
            return file


def numbered_directories(wanted: Path) -> Iterator[Path]:
    """The directories that ``create_run_directory`` has made for ``wanted``, the oldest first; earlier ones may have
    been deleted."""
    found = {wanted: 1} if wanted.is_dir() else {}
    for path in wanted.parent.glob(f"{glob.escape(wanted.name)}-*"):
        number = path.name.removeprefix(f"{wanted.name}-")
        if number.isascii() and number.isdigit() and int(number) > 1 and path.is_dir():
            found[path] = int(number)
    yield from sorted(found, key=found.__getitem__)


def _numbered(wanted: Path, number: int) -> Path:
    return wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
