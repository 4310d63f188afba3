"""Further places that get every step's metrics: TensorBoard and Weights & Biases, both optional extras."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from areal_x.api.errors import MissingExtraError

__all__ = ["MetricSink", "TensorBoardSink", "WandbSink"]


_EVALUATED_STEP = "eval/step"


class MetricSink(Protocol):
    """Gets each step's metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Writes event files into ``<run>/tensorboard``, without loading torch.

    Raises:
        MissingExtraError: the extra is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from tensorboard.compat.proto import (  # type: ignore[import-untyped, unused-ignore]
                event_pb2,
                summary_pb2,
            )
            from tensorboard.summary.writer.event_file_writer import (  # type: ignore[import-untyped, unused-ignore]
                EventFileWriter,
            )
        except ImportError as error:
            raise MissingExtraError(
                "observe.tensorboard=true needs TensorBoard: pip install 'areal-x[tensorboard]'"
            ) from error
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(directory))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Logs to a Weights & Biases run. ``config`` must be free of secrets.

    Raises:
        MissingExtraError: the extra is not installed.
    """

    def __init__(self, project: str, name: str, directory: Path, config: Any) -> None:
        try:
            import wandb  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise MissingExtraError(
                "observe.wandb=true needs Weights & Biases: pip install 'areal-x[wandb]'"
            ) from error
        self._run = wandb.init(project=project, name=name, dir=str(directory), config=config)
        self._run.define_metric("eval/*", step_metric=_EVALUATED_STEP)
        self._last_step = 0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Steps must not go back here, and an evaluation may come some steps late: it is drawn over its own step."""
        self._last_step = max(self._last_step, step)
        is_evaluation = any(name.startswith("eval/") for name in metrics)
        self._run.log(dict(metrics) | ({_EVALUATED_STEP: step} if is_evaluation else {}), step=self._last_step)

    def close(self) -> None:
        self._run.finish()
