"""Batches of steps that were skipped because a number was not finite, as files that can be replayed.

One file for each step, ``<run>/skipped/step_000012.npz``: the arrays of its ``TrainBatch``, ``step`` and ``version``.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from areal_x.api.errors import DataError
from areal_x.api.records import TrainBatch

__all__ = [
    "MAX_KEPT",
    "POLICY_FOLDER",
    "SkippedBatch",
    "join_batches",
    "read_skipped",
    "select_sequences",
    "write_skipped",
]

MAX_KEPT = 8
"""So many files of a run are kept, the newest."""
POLICY_FOLDER = "policy"
"""Beside the files: the weights that the last of them met, where they ended the run."""
_OF_SEQUENCES = ("lengths", "group_ids")


@dataclass(frozen=True, slots=True)
class SkippedBatch:
    """What step ``step`` was to be trained on, by weights of ``version``."""

    step: int
    version: int
    batch: TrainBatch


def join_batches(parts: Sequence[TrainBatch]) -> TrainBatch:
    """The parts of one step as one batch."""
    if len(parts) == 1:
        return parts[0]
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(TrainBatch):
        values = [getattr(part, field.name) for part in parts]
        arrays[field.name] = None if any(value is None for value in values) else np.concatenate(values)
    return TrainBatch(**arrays)


def select_sequences(batch: TrainBatch, start: int, stop: int) -> TrainBatch:
    """The sequences ``start`` to ``stop`` of a batch, as a batch."""
    first, last = batch.offsets[start], batch.offsets[stop]
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(TrainBatch):
        value = getattr(batch, field.name)
        if value is not None:
            value = value[start:stop] if field.name in _OF_SEQUENCES else value[first:last]
        arrays[field.name] = value
    return TrainBatch(**arrays)


def write_skipped(folder: Path, skipped: SkippedBatch) -> Path:
    """Write one file, and remove the oldest where there are more than ``MAX_KEPT``; gives the file's path.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{skipped.step:06d}.npz"
    arrays = {field.name: getattr(skipped.batch, field.name) for field in dataclasses.fields(TrainBatch)}
    present = {name: array for name, array in arrays.items() if array is not None}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, step=skipped.step, version=skipped.version, **present)
    for old in sorted(folder.glob("step_*.npz"))[:-MAX_KEPT]:
        old.unlink()
    return path


def read_skipped(path: Path) -> SkippedBatch:
    """Read what ``write_skipped`` wrote.

    Raises:
        DataError: it is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        step, version = int(arrays.pop("step")), int(arrays.pop("version"))
        return SkippedBatch(step, version, TrainBatch(**arrays))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no batch of a skipped step, as RUN_DIR/skipped holds them: {error}") from error
