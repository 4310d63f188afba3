"""Checkpoints of a run as directories: each whole, or not there at all.

::

    begin     checkpoints/step_000012.partial/      engines and the run write into it
    commit    size and checksum of each file -> fsync -> manifest.json, last -> rename to step_000012 -> fsync -> prune

A directory without ``.partial`` was complete when it got its name, whatever happened to the process at whatever
moment; ``manifest.json`` tells whether it still is. Directories are taken away in the other order: renamed, then
deleted.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from areal_x.api.checkpoint_config import CheckpointConfig
from areal_x.api.errors import CheckpointError
from areal_x.trainer.checkpoint_files import (
    Checkpoint,
    described,
    open_checkpoint,
    read_json,
    sync_directory,
    write_json_atomically,
    write_manifest,
)

__all__ = ["CHECKPOINTS", "EXPORT", "PARTIAL", "CheckpointStore", "best_steps", "kept_steps"]

CHECKPOINTS = "checkpoints"
"""Folder of a run."""
PARTIAL = ".partial"
EXPORT = ".export"
"""Beside a checkpoint: its policy in Hugging Face format, where something asked for it."""
_METRICS = "metrics.json"


class CheckpointStore:
    """The checkpoints of one run; its methods may be called from several threads.

    Args:
        directory: made with the first checkpoint.
        config: which ones are kept.
        identity: what this run's models are; see ``run_identity``. Default: not compared.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, identity: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.num_failures_in_a_row = 0
        self._config = config
        self._identity = None if identity is None else dict(identity)
        self._lock = threading.RLock()
        self._known_values: dict[int, float] | None = None

    def begin(self, step: int) -> Path:
        """An empty directory to write the checkpoint of ``step`` into.

        Raises:
            CheckpointError: it cannot be made.
        """
        partial = self._path(step, PARTIAL)
        try:
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint {partial}: {described(error)}") from error
        return partial

    def commit(self, step: int, facts: Mapping[str, Any] | None = None) -> Checkpoint:
        """Make what was written since ``begin`` the checkpoint of ``step``; delete those that are not kept.

        Args:
            facts: of the run, for ``Checkpoint.facts``: anything that JSON holds.

        Raises:
            CheckpointError: it could not be written; ``abandon`` comes next.
        """
        partial, path = self._path(step, PARTIAL), self._path(step)
        try:
            # Takes long, and nobody else looks into this directory: those who record metrics do not wait for it.
            manifest = write_manifest(partial, step, self._identity or {}, facts or {})
            with self._lock:
                if path.exists():
                    self._remove(path)
                partial.rename(path)
                sync_directory(self.directory)
                self.num_failures_in_a_row = 0
                self._prune()
        except OSError as error:
            raise CheckpointError(f"checkpoint {partial}: {described(error)}") from error
        return Checkpoint(path, step, manifest["facts"], manifest["identity"])

    def abandon(self, step: int, cause: CheckpointError) -> None:
        """Remove what was written since ``begin``; earlier checkpoints stay, and the run may go on.

        Raises:
            CheckpointError: the last ``checkpoint.max_failures_in_a_row`` checkpoints failed; with the last cause.
        """
        shutil.rmtree(self._path(step, PARTIAL), ignore_errors=True)
        with self._lock:
            self.num_failures_in_a_row += 1
            number = self.num_failures_in_a_row
        if number >= self._config.max_failures_in_a_row:
            raise CheckpointError(
                f"{number} checkpoints in a row could not be written (checkpoint.max_failures_in_a_row); the last: "
                f"{cause}"
            ) from cause

    def steps(self) -> list[int]:
        """Steps of all checkpoints, good or bad, in order."""
        if not self.directory.is_dir():
            return []
        numbers = (path.name.removeprefix("step_") for path in self.directory.glob("step_*") if path.is_dir())
        return sorted(int(number) for number in numbers if number.isdigit())

    def newest_good(self, on_bad: Callable[[Path, str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole and of this run's models; ``None`` where there is none.

        Args:
            on_bad: called with each newer one that is not, and what is wrong with it.
        """
        for step in reversed(self.steps()):
            try:
                return self.open(self._path(step))
            except CheckpointError as error:
                on_bad(self._path(step), str(error))
        return None

    def open(self, path: Path) -> Checkpoint:
        """A checkpoint, verified: see ``open_checkpoint``."""
        return open_checkpoint(path, self._identity)

    def remove_partials(self) -> list[Path]:
        """Remove what a killed run left half-written or half-deleted; returns these directories."""
        found = sorted(self.directory.glob(f"*{PARTIAL}"))
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return found

    def cut_after(self, step: int) -> list[Path]:
        """Remove checkpoints of later steps and what was measured of them: the run goes on from ``step``, so they are
        of weights that do not survive. Returns those removed."""
        with self._lock:
            removed = [self._path(later) for later in self.steps() if later > step]
            for path in removed:
                self._remove(path)
            values = self._values()
            if any(measured > step for measured in values):
                self._write_values({measured: value for measured, value in values.items() if measured <= step})
        return removed

    def record_metric(self, step: int, value: float) -> None:
        """``checkpoint.best_metric`` of the weights after ``step`` is ``value``; before or after their checkpoint is
        written. What is not finite is not recorded; on a full disk it is written down with the next one.
        """
        if not math.isfinite(value):
            return
        with self._lock:
            self._write_values(self._values() | {step: value})
            self._prune()

    def best_steps(self) -> list[int]:
        """Steps of the checkpoints that are kept as the best, best first."""
        return best_steps(self.steps(), self._values(), self._config)

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.directory / f"step_{step:06d}{suffix}"

    def _prune(self) -> None:
        """Delete what is not kept; what the system does not let go of now is tried again with the next checkpoint."""
        steps = self.steps()
        for step in set(steps) - kept_steps(steps, self._values(), self._config):
            with suppress(OSError):
                self._remove(self._path(step))

    def _remove(self, path: Path) -> None:
        """Delete a checkpoint; should this process end in the middle, ``remove_partials`` goes on."""
        aside = path.with_name(f"{path.name}.old{PARTIAL}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(path.with_name(path.name + EXPORT), ignore_errors=True)

    def _values(self) -> dict[int, float]:
        if self._known_values is None:
            try:
                found = read_json(self.directory / _METRICS)
                self._known_values = {int(step): float(value) for step, value in found.items()}
            except (OSError, ValueError, TypeError, AttributeError):
                # There is none yet; or, as it is written atomically, somebody has changed it: the best are found anew.
                self._known_values = {}
        return self._known_values

    def _write_values(self, values: Mapping[int, float]) -> None:
        self._known_values = dict(values)
        with suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
            by_name = {str(step): value for step, value in sorted(values.items())}
            write_json_atomically(self.directory / _METRICS, by_name)


def best_steps(steps: Sequence[int], values: Mapping[int, float], config: CheckpointConfig) -> list[int]:
    """The ``keep_best`` best of those ``steps`` that were measured, best first; of equal ones the newer."""
    if config.best_metric is None:
        return []
    sign = 1.0 if config.best_is == "highest" else -1.0
    ranked = sorted(((sign * values[step], step) for step in steps if step in values), reverse=True)
    return [step for _, step in ranked[: config.keep_best]]


def kept_steps(steps: Sequence[int], values: Mapping[int, float], config: CheckpointConfig) -> set[int]:
    """Which of ``steps``, in order, are kept: the newest, the last ``keep_last`` of them, and the best."""
    first_kept = max(0, len(steps) - max(1, config.keep_last))
    return {*steps[first_kept:], *best_steps(steps, values, config)}
