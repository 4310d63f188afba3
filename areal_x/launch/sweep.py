"""``--multirun``: each combination of ``key=a,b,c`` as a run of its own, one after another.

Each run is a new process, so none inherits the memory, the threads or the random state of another. All configurations
are checked before the first run starts.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.launch.checked import checked_config, dry_run
from areal_x.launch.compose import ConfigSource, expand_sweep, parse_override

__all__ = ["SweepRun", "plan_sweep", "run_sweep"]

STOP_SECONDS = 10.0
"""A run that was told to stop may take so long; then it is killed."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its own name and the overrides that make it."""

    name: str
    overrides: list[str]
    config: ExperimentConfig


def plan_sweep(command: str, source: ConfigSource, overrides: Sequence[str]) -> list[SweepRun]:
    """The runs of a sweep, each checked, each under a name that no other has.

    Raises:
        ConfigError: one of the configurations is wrong; the message begins with its values.
    """
    swept = [parse_override(text) for text in overrides]
    keys = [override.key_or_group for override in swept if override.is_sweep_override()]
    if not keys:
        raise ConfigError("--multirun without a sweep; write key=a,b,c for each key to sweep")
    runs: list[SweepRun] = []
    for combination in expand_sweep(overrides):
        values = [text for text in combination if text.lstrip("+").partition("=")[0] in keys]
        try:
            config = checked_config(command, source, combination)
        except ConfigError as error:
            raise ConfigError(f"run {' '.join(values)}: {error}") from error
        if "name" not in keys:
            config.name = f"{config.name}_{'_'.join(_slug(text, keys) for text in values)}"
        config.name = _unique(config.name, {run.name for run in runs})
        runs.append(SweepRun(config.name, [*combination, f"name={_as_text(config.name)}"], config))
    return runs


def _slug(override: str, keys: Sequence[str]) -> str:
    """``train.learning_rate=1e-4`` as ``learning_rate-1e-4``; the whole key where two swept keys end alike."""
    key, _, value = override.lstrip("+").partition("=")
    leaf = key.rpartition(".")[2]
    label = leaf if [other.rpartition(".")[2] for other in keys].count(leaf) == 1 else key
    words = re.findall(r"[A-Za-z0-9.+_-]+", value)
    return f"{label}-{'-'.join(words)}"[:60]


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 2, name
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique


def _as_text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def run_sweep(command: str, source: ConfigSource, overrides: Sequence[str], dry: bool = False) -> int:
    """Run a sweep and print its summary; return 0 when every run ended well, else 1, or 130 when interrupted."""
    runs = plan_sweep(command, source, overrides)
    if dry:
        for run in runs:
            print(f"# {run.name}")
            dry_run(command, source, run.overrides)
            print("---")
        return 0
    results: list[tuple[SweepRun, str]] = []
    interrupted = False
    for number, run in enumerate(runs, start=1):
        print(f"== run {number} of {len(runs)}: {run.name}", flush=True)
        started_at = time.time()
        status = _run_one(command, source, run)
        interrupted = status == 130
        results.append((run, _result_line(run, status, time.time() - started_at, started_at)))
        if interrupted:
            break
    print(f"== {len(results)} of {len(runs)} runs")
    width = max(len(run.name) for run in runs)
    for run, line in results:
        print(f"{run.name:<{width}}  {line}")
    if interrupted:
        return 130
    return 0 if all(line.startswith("ok") for _, line in results) else 1


def _run_one(command: str, source: ConfigSource, run: SweepRun) -> int:
    """One run in a process (and process group) of its own; a stop signal is passed on to it once."""
    origin = ["--config-name", source.path.stem] if source.shipped else [str(source.path)]
    arguments = [sys.executable, "-m", "areal_x.cli", command, *origin, *run.overrides]
    previous = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        with subprocess.Popen(arguments, start_new_session=True) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _as_interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _result_line(run: SweepRun, status: int, seconds: float, started_at: float) -> str:
    if status:
        return f"failed (exit {status}) after {seconds:.0f} s"
    directory = _directory_of(run, started_at)
    accuracy = _last_accuracy(directory) if directory else ""
    return f"ok  {seconds:.0f} s{accuracy}  {directory or ''}".rstrip()


def _directory_of(run: SweepRun, started_at: float) -> Path | None:
    """The run's folder: the newest one of its name (an earlier run of that name makes it a numbered one)."""
    wanted = run.config.run_dir
    if not wanted.parent.is_dir():
        return None
    numbered = re.compile(re.escape(wanted.name) + r"(-\d+)?")
    folders = [path for path in wanted.parent.iterdir() if path.is_dir() and numbered.fullmatch(path.name)]
    fresh = [path for path in folders if path.stat().st_mtime >= started_at - 1]
    return max(fresh, key=lambda path: path.stat().st_mtime, default=None)


def _last_accuracy(directory: Path) -> str:
    """The last evaluation in ``metrics.jsonl``, as text; empty when there is none."""
    metrics = directory / "metrics.jsonl"
    if not metrics.is_file():
        return ""
    last = ""
    for line in metrics.read_text(encoding="utf-8").splitlines():
        if '"eval/' not in line:
            continue
        record = json.loads(line)
        for key, value in record.items():
            if key.startswith("eval/") and key.endswith("/accuracy"):
                last = f"  accuracy {value:.3f}"
    return last
