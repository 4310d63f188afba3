"""Reads a run directory back, whole or partial, for the report, the curves and the closing lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

from areal_x.api.errors import DataError

__all__ = ["RunData", "load_run", "read_lines"]

_PREFIX = "eval/"
_SAMPLES_METRICS = ("pass", "majority")


@dataclass
class RunData:
    """What a run directory holds. ``steps``: one dict of metrics for each step, in order; step 0 is before training."""

    run_dir: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.run_dir.name)

    @property
    def trained_steps(self) -> list[dict[str, Any]]:
        """The steps in which something was trained (step 0 and objects that hold only evaluations are not)."""
        return [row for row in self.steps if row["step"] > 0 and ("reward/mean" in row or "train/loss" in row)]

    @property
    def accuracies(self) -> dict[str, list[tuple[int, float]]]:
        """(step, accuracy) pairs of each evaluated data set, in order."""
        return {dataset: points for (dataset, name), points in self.evaluations.items() if name == "accuracy"}

    @property
    def several_samples(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) pairs of ``pass@k, <data set>`` and ``majority@k, <data set>`` for k above 1, in order."""
        found = {}
        for (dataset, name), points in self.evaluations.items():
            word, _, number = name.partition("@")
            if word in _SAMPLES_METRICS and number.isdecimal() and int(number) > 1:
                found[f"{name}, {dataset}"] = points
        return found

    @property
    def evaluations(self) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """(step, value) pairs of each metric of each evaluated data set, by (data set, metric), in order."""
        curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for row in self.steps:
            for name, value in row.items():
                dataset, _, metric = name.removeprefix(_PREFIX).partition("/")
                if name.startswith(_PREFIX) and metric and isinstance(value, int | float):
                    curves.setdefault((dataset, metric), []).append((row["step"], float(value)))
        return curves

    @property
    def duration(self) -> float | None:
        """Seconds from the start of the run to its end or, for an interrupted run, to the last step reported."""
        known = [self.info.get("duration_seconds"), *(row.get("time") for row in self.steps)]
        return max((float(value) for value in known if isinstance(value, int | float)), default=None)

    def values(self, name: str) -> list[float]:
        """The finite values of a metric, step by step, gaps left out."""
        return [float(row[name]) for row in self.trained_steps if isinstance(row.get(name), int | float)]

    def steady_mean(self, name: str) -> float | None:
        """Mean of a metric over the steady state: all steps but the first tenth, in which the pipeline fills.

        Steps count by their ``perf/step_seconds``, so that the mean of a rate is the total over the total time.
        """
        rows = [row for row in self.trained_steps if isinstance(row.get(name), int | float)]
        rows = rows[min(len(rows) - 1, -(-len(rows) // 10)) :] if rows else []
        weights = [float(row.get("perf/step_seconds") or 1.0) for row in rows]
        return sum(float(row[name]) * w for row, w in zip(rows, weights, strict=True)) / sum(weights) if rows else None

    def last(self, name: str) -> float:
        """The last value of a running total, 0 where the run has none."""
        return float(next((row[name] for row in reversed(self.trained_steps) if name in row), 0.0))

    def lag_counts(self) -> dict[int, int]:
        """Trained tokens by lag in versions, summed over the run."""
        counts: dict[int, int] = {}
        for row in self.steps:
            for name, value in row.items():
                lag = name.removeprefix("staleness/lag/")
                if lag != name and lag.isdecimal() and isinstance(value, int | float):
                    counts[int(lag)] = counts.get(int(lag), 0) + int(value)
        return dict(sorted(counts.items()))

    def outcome_counts(self) -> dict[tuple[str, str], int]:
        """Samples by (status, reason), from ``outcome/<status>`` and ``outcome/<status>/<reason>`` counts.

        Where reasons are known, the row without one holds only the rest.
        """
        counts: dict[tuple[str, str], int] = {}
        for row in self.steps:
            for name, value in row.items():
                if name.startswith("outcome/") and isinstance(value, int | float):
                    status, _, reason = name.removeprefix("outcome/").partition("/")
                    counts[status, reason] = counts.get((status, reason), 0) + int(value)
        for status in {status for status, reason in counts if reason}:
            known = sum(count for (owner, reason), count in counts.items() if owner == status and reason)
            rest = counts.pop((status, ""), known) - known
            if rest > 0:
                counts[status, ""] = rest
        return {key: count for key, count in counts.items() if count}

    def trajectories(self) -> Iterator[dict[str, Any]]:
        """The kept samples, one after the other, not all in memory at once."""
        return read_lines(self.run_dir / "trajectories.jsonl")

    def spans(self) -> Iterator[dict[str, Any]]:
        """The records of the time line."""
        return read_lines(self.run_dir / "timeline.jsonl")

    def setting(self, *path: str, default: Any = None) -> Any:
        """A value of the configuration by its path, ``default`` where it is missing."""
        node: Any = self.config
        for key in path:
            if not isinstance(node, dict) or key not in node:
                return default
            node = node[key]
        return node


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines; a missing file has none, and a line cut off by a kill is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record


def load_run(run_dir: Path) -> RunData:
    """Read a run directory; whatever is missing from a partial run is empty.

    Raises:
        DataError: there is no such directory, or nothing of a run in it.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(f"{run_dir} is not a directory; name a run's directory, such as runs/quickstart")
    if not any((run_dir / name).is_file() for name in ("metrics.jsonl", "config.yaml", "run.json")):
        raise DataError(f"{run_dir} holds no run: neither metrics.jsonl, config.yaml nor run.json is there")
    merged: dict[int, dict[str, Any]] = {}
    for row in read_lines(run_dir / "metrics.jsonl"):
        if isinstance(row.get("step"), int):
            merged.setdefault(row["step"], {}).update(row)
    info = next(read_lines(run_dir / "run.json"), {})
    text, config = _read_config(run_dir / "config.yaml")
    return RunData(run_dir, [merged[step] for step in sorted(merged)], info, text, config)


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        return "", {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        node = OmegaConf.create(text)
        content = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    except (OmegaConfBaseException, YAMLError):
        content = {}
    return text, {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
