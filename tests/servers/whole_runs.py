"""Whole runs as a user starts them, and what each of them must show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from server_processes import is_running

__all__ = ["COMMAND", "FinishedRun", "assert_sane", "mean_of", "run_to_end", "values"]

COMMAND = (sys.executable, "-m", "areal_x.cli")


@dataclass(frozen=True)
class FinishedRun:
    """A command that ended, with the folder that it ran in."""

    status: int
    output: str
    folder: Path
    seconds: float

    @property
    def directory(self) -> Path:
        """Of its only run."""
        (directory,) = (self.folder / "runs").iterdir()
        return directory

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Lines of one of its files."""
        return [json.loads(line) for line in (self.directory / name).read_text(encoding="utf-8").splitlines()]

    def steps(self) -> list[dict[str, Any]]:
        """Metrics of the training steps."""
        return [row for row in self.rows() if "reward/mean" in row]


def run_to_end(folder: Path, *arguments: str, command: Iterable[str] = COMMAND, timeout: float = 800.0) -> FinishedRun:
    """Run a command in ``folder``; no process of it may be left."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        seen: set[psutil.Process] = set()
        try:
            while process.poll() is None and time.monotonic() < started + timeout:
                seen.update(psutil.Process(process.pid).children(recursive=True))
                time.sleep(0.5)
        except psutil.NoSuchProcess:
            pass
        finally:
            was_late = process.poll() is None
            process.kill()
            status = process.wait()
    text = (folder / "output.txt").read_text(errors="replace")
    assert not was_late, f"not finished after {timeout:g} s:\n{text[-3000:]}"
    left = [one for one in seen if is_running(one)]
    assert not left, f"processes left behind: {left}"
    return FinishedRun(status, text, folder, time.monotonic() - started)


def values(rows: Iterable[dict[str, Any]], name: str) -> list[float]:
    """One metric of all rows that have it."""
    return [row[name] for row in rows if name in row]


def mean_of(numbers: list[float]) -> float:
    """Their mean."""
    return sum(numbers) / len(numbers)


def assert_sane(run: FinishedRun, num_steps: int, batch_size: int, max_staleness: int) -> None:
    """Every step once, nothing lost, no token over age, and the servers' logs in place."""
    assert run.status == 0, run.output[-3000:]
    steps = run.steps()
    assert [row["step"] for row in steps] == list(range(1, num_steps + 1))
    assert [row["version"] for row in steps] == list(range(1, num_steps + 1))
    lags = {int(name.rpartition("/")[2]) for row in steps for name in row if name.startswith("staleness/lag/")}
    assert lags and max(lags) <= max_staleness
    last = steps[-1]
    assert last["episodes/trained"] == num_steps * batch_size
    assert last["episodes/failed"] == 0
    assert json.loads((run.directory / "run.json").read_text())["status"] == "finished"
