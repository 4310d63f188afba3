"""Writes the files of a run while it goes on."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from areal_x.api.config import ObserveConfig
from areal_x.observe.file_positions import LINE_FILES, FilePositions
from areal_x.observe.line_file import LineFile, RunWriteError, encode_line, plain_value, replace_file
from areal_x.observe.redaction import redact_yaml
from areal_x.observe.run_files import read_lines
from areal_x.observe.sinks import MetricSink, TensorBoardSink, WandbSink
from areal_x.observe.timeline import AnySpan, coalesce

__all__ = ["RunWriter"]

_MAX_PENDING_SPANS = 4096


class RunWriter:
    """The files of one run, complete up to the last call that returned, whatever happens to the process after it.

    - ``config.yaml``: the resolved configuration, secrets redacted; ``run.json``: name, start, machine, status.
    - ``metrics.jsonl``: one flat object for each step, names with slashes. Step 0 is before training.
    - ``trajectories.jsonl``: one object for each kept sample (``trajectory_record``).
    - ``prompts.jsonl``: one object for each prompt of an epoch, when its fate is settled.
    - ``timeline.jsonl``: spans in seconds since the start of the run; busy lanes coalesced (``timeline.coalesce``).

    ``add_span`` may be called from any thread.

    Args:
        resumed: the run goes on in its directory, whose files were cut back to this point (``cut_back``).

    Raises:
        RunWriteError: a file cannot be written.
        MissingExtraError: a sink was asked for whose extra is not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        config_yaml: str,
        observe: ObserveConfig,
        run_name: str,
        resumed: FilePositions | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.started_at = time.monotonic() - (resumed.time if resumed is not None else 0.0)
        """``time.monotonic()`` of the run's start: zero of every ``time``, ``start`` and ``end`` in the files. Of a run
        that was resumed: as if it had never stopped."""
        self._pending_spans: deque[AnySpan] = deque()
        self._flushing = threading.Lock()
        self._closed = False
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunWriteError(f"cannot make {self.run_dir}: {error.strerror}; choose another runs_dir") from error
        config = redact_yaml(config_yaml)
        self._sinks = _open_sinks(observe, self.run_dir, run_name, config)
        replace_file(self.run_dir / "config.yaml", config)
        self._run_info = _describe_run(run_name)
        if resumed is not None:
            self._run_info |= _earlier_info(self.run_dir, resumed.step)
        self._write_run_info()
        self._files = {name: LineFile(self.run_dir / name) for name in LINE_FILES}

    def write_step(self, metrics: Mapping[str, Any]) -> None:
        """Write one step's object, and the spans reported since the last.

        ``metrics`` holds ``step`` and any numbers by slash name; ``time`` (seconds since the start) is added. Two calls
        with one step number are read as one step. Values that are not finite are written as ``null``.

        Raises:
            ValueError: there is no ``step``.
            RunWriteError: the system refused.
        """
        if "step" not in metrics:
            raise ValueError("write_step needs metrics['step']")
        step = int(metrics["step"])
        record: dict[str, Any] = {"step": step, "time": round(time.monotonic() - self.started_at, 4)}
        record |= {name: plain_value(value) for name, value in metrics.items() if name != "step"}
        self._files["metrics.jsonl"].append([record])
        self._flush_spans()
        if self._sinks:
            numbers = {
                name: float(value)
                for name, value in record.items()
                if name != "step" and isinstance(value, int | float)
            }
            for sink in self._sinks:
                sink.write(step, numbers)

    def write_trajectories(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records made by ``trajectory_record``.

        Raises:
            RunWriteError: the system refused.
        """
        self._files["trajectories.jsonl"].append(records)

    def write_prompts(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records of prompts whose fate is settled.

        Raises:
            RunWriteError: the system refused.
        """
        self._files["prompts.jsonl"].append(records)

    def positions(self, step: int) -> FilePositions:
        """Where the files end now, for a checkpoint of ``step``, which has been reported.

        Raises:
            RunWriteError: the system refused.
        """
        self._flush_spans()
        sizes = {name: file.size() for name, file in self._files.items()}
        return FilePositions(step, round(time.monotonic() - self.started_at, 4), sizes)

    def sync(self) -> None:
        """Bring what was written to the disk; may be called from any thread.

        Raises:
            RunWriteError: the system refused.
        """
        for file in self._files.values():
            file.sync()

    def add_span(self, lane: str, name: str, start: float, end: float, **info: Any) -> None:
        """Report that ``lane`` did ``name`` from ``start`` to ``end`` (``time.monotonic()`` seconds).

        Lanes: ``generation``, ``scoring``, ``training``, ``weights``, ``evaluation``, ``warm_start``, ``checkpoint``.
        Written at the next ``write_step`` or ``close``.
        """
        self._pending_spans.append((lane, name, start, end, info))
        if len(self._pending_spans) >= _MAX_PENDING_SPANS:
            self._flush_spans()

    def close(self, status: str = "finished") -> None:
        """Write what is pending and close all files. A second call does nothing.

        ``status`` says how the run ended: ``finished``, ``interrupted`` or ``failed``.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._flush_spans()
            self._run_info |= {"status": status, "duration_seconds": round(time.monotonic() - self.started_at, 3)}
            self._write_run_info()
        finally:
            for file in self._files.values():
                file.close()
            for sink in self._sinks:
                sink.close()

    def _flush_spans(self) -> None:
        with self._flushing:
            # Other threads may append meanwhile: what is there now is taken, one by one.
            spans = [self._pending_spans.popleft() for _ in range(len(self._pending_spans))]
            if spans:
                self._files["timeline.jsonl"].append(coalesce(spans, self.started_at))

    def _write_run_info(self) -> None:
        replace_file(self.run_dir / "run.json", encode_line(self._run_info) + "\n")


def _open_sinks(observe: ObserveConfig, run_dir: Path, run_name: str, config: str) -> list[MetricSink]:
    sinks: list[MetricSink] = []
    if observe.tensorboard:
        sinks.append(TensorBoardSink(run_dir / "tensorboard"))
    if observe.wandb:
        content = OmegaConf.to_container(OmegaConf.create(config), resolve=False)
        sinks.append(WandbSink(observe.wandb_project, run_name, run_dir, content))
    return sinks


def _describe_run(run_name: str) -> dict[str, Any]:
    return {
        "name": run_name,
        "status": "running",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {_num_cpus()} CPU cores",
        "python": platform.python_version(),
    }


def _earlier_info(run_dir: Path, step: int) -> dict[str, Any]:
    """When the run that goes on was started first, and at which steps it was resumed, with the one now."""
    earlier = next(read_lines(run_dir / "run.json"), {})
    now = datetime.now(UTC).isoformat(timespec="seconds")
    resumes = earlier.get("resumes")
    kept = {name: earlier[name] for name in ("name", "started_at") if name in earlier}
    return kept | {"resumes": [*(resumes if isinstance(resumes, list) else []), {"step": step, "at": now}]}


def _num_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
