"""How far the files of a run were written at one moment, and the way back to it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_x.api.errors import CheckpointError
from areal_x.observe.line_file import encode_line

__all__ = ["LINE_FILES", "FilePositions", "check_positions", "cut_back"]

LINE_FILES = ("metrics.jsonl", "trajectories.jsonl", "timeline.jsonl", "prompts.jsonl")
"""Files of a run that grow line by line."""


@dataclass(frozen=True, slots=True)
class FilePositions:
    """What a checkpoint of ``step`` remembers: ``time`` in seconds since the run's start, and bytes of each file."""

    step: int
    time: float
    sizes: dict[str, int]

    def as_facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"step": self.step, "time": self.time, "sizes": self.sizes}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> FilePositions:
        """What ``as_facts`` gave; raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        return cls(int(facts["step"]), float(facts["time"]), {name: int(facts["sizes"][name]) for name in LINE_FILES})


def check_positions(run_dir: Path, positions: FilePositions) -> None:
    """Whether the files still begin with what they held then.

    Raises:
        CheckpointError: one is shorter, or was changed.
    """
    for name, size in positions.sizes.items():
        path = run_dir / name
        there = path.stat().st_size if path.is_file() else 0
        if there < size:
            raise CheckpointError(f"{path} has {there} bytes, and had {size} at step {positions.step}; it was changed")
        if size:
            with path.open("rb") as file:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    raise CheckpointError(
                        f"{path} has no end of a line at byte {size}, where step {positions.step} ended"
                    )


def cut_back(run_dir: Path, positions: FilePositions) -> None:
    """Cut the files back to what they held then: later lines are of weights that do not survive.

    Of ``metrics.jsonl``, objects of that step and earlier ones stay that were written later: evaluations go on while
    training does.

    Raises:
        CheckpointError: as ``check_positions``, or a file cannot be changed.
    """
    check_positions(run_dir, positions)
    try:
        for name, size in positions.sizes.items():
            with (run_dir / name).open("ab") as file:
                late = _late_metrics(run_dir / name, size, positions.step) if name == "metrics.jsonl" else b""
                os.ftruncate(file.fileno(), size)
                file.write(late)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{run_dir}: its files cannot be cut back: {error.strerror or error}") from error


def _late_metrics(path: Path, start: int, step: int) -> bytes:
    """The objects of ``step`` and before that stand behind ``start``."""
    kept = []
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # The end of a file whose writer was killed.
            if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
                kept.append(encode_line(row) + "\n")
    return "".join(kept).encode()
