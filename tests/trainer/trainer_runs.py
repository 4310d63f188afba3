"""Starts ``areal-x`` as a process of its own, and reads what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY_INIT: dict[str, Any] = {
    "tokenizer": "characters",
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "intermediate_size": 32,
}
TINY = [
    *(f"model.init.{key}={value}" for key, value in TINY_INIT.items()),
    "data.kwargs.num_items=256",
    "sft.enabled=false",
    "train.batch_size=32",
    "train.total_steps=3",
    "rollout.num_slots=32",
    "rollout.group_size=4",
    "reward.num_workers=1",
    "evaluation.every_steps=0",
    "evaluation.limit=16",
    "observe.report=false",
]
"""Changes that make the quickstart as small as can be: it learns nothing, and takes every step of a run."""


@dataclass(frozen=True)
class FinishedRun:
    """One command that ended: its exit status, what it printed, and the folder that it ran in."""

    status: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def directory(self) -> Path:
        """The only run in the folder."""
        (directory,) = (self.folder / "runs").iterdir()
        return directory

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        return read_rows(self.directory / name)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every line must be one whole JSON object: a torn line raises."""
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n"), f"{path.name} ends in a torn line"
    return [json.loads(line) for line in text.splitlines()]


def start_command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start ``areal-x`` in a process group of its own, as a shell does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "areal_x.cli", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_command(folder: Path, *arguments: str, timeout: float = 500.0) -> FinishedRun:
    process = start_command(folder, *arguments)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return FinishedRun(process.returncode, stdout, stderr, folder)


def values(rows: Iterable[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]
