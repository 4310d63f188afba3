"""What a person at the terminal sees of a run: step lines, and a live line below them where one can be shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from areal_x.observe.step_line import reward_parts, step_header, step_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["RunDisplay"]

_LINES_BETWEEN_HEADERS = 40
_NARROWEST_TERMINAL = 20
"""Below so many columns (a terminal may claim to have none) a bar says nothing and Rich prints nothing."""


class RunDisplay:
    """Prints the header, one line for each step and the phases; draws a Rich progress bar when it can.

    ``progress=False``, a stream that is no terminal, and ``TERM=dumb`` give plain lines. Losing the stream (a closed
    pipe) silences the display: a run is never stopped by who watches it.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        progress: bool = True,
        stream: TextIO | None = None,
        parts: Sequence[str] | None = None,
    ) -> None:
        self.total_steps = total_steps
        self._stream = sys.stdout if stream is None else stream
        self._parts = None if parts is None else list(parts)
        self._lines_since_header = _LINES_BETWEEN_HEADERS
        self._phase = ""
        self._named_phases: set[str] = set()
        self._live: dict[str, str] = {}
        self._silent = False
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if progress and self._is_capable_terminal():
            self._start_progress()

    def phase(self, text: str, completed: int | None = None, total: int | None = None) -> None:
        """Say what the run is doing now: starting engine, warm start, rollout, training, evaluation.

        ``completed`` and ``total`` say how far it is. Plain output names each phase once: those that come back at every
        step would drown the step lines.
        """
        self._phase = text if completed is None else f"{text} {completed}{'' if total is None else f'/{total}'}"
        if self._progress is not None:
            self._refresh()
        elif text not in self._named_phases:
            self.print(text)
        self._named_phases.add(text)

    def live(self, **values: float | str | None) -> None:
        """Set values of the live line, such as ``reward``, ``in_flight`` and ``queue``; plain output shows none."""
        for name, value in values.items():
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            self._live[name.replace("_", " ")] = text
        if self._progress is not None:
            self._refresh()

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Print the line of one step and move the bar."""
        if not self._parts and (parts := reward_parts(metrics)):
            # An evaluation before training has no parts: now the columns change, so they get a new heading.
            self._parts = parts
            self._lines_since_header = _LINES_BETWEEN_HEADERS
        if self._lines_since_header >= _LINES_BETWEEN_HEADERS:
            self.print(step_header(self.total_steps, self._parts or ()))
            self._lines_since_header = 0
        self._lines_since_header += 1
        self.print(step_line(metrics, self.total_steps, self._parts or ()))
        names = {"reward/mean": "reward", "rollout/in_flight": "in flight", "rollout/queue": "queue"}
        for metric, name in names.items():
            value = metrics.get(metric)
            if isinstance(value, int | float):
                self._live[name] = f"{value:.3f}" if metric == "reward/mean" else f"{value:.0f}"
        if self._progress is not None:
            self._refresh(completed=int(metrics.get("step", 0)))

    def print(self, text: str) -> None:
        """Print a line above the bar, exactly as it is."""
        if self._silent:
            return
        try:
            if self._progress is not None:
                self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)
            else:
                self._stream.write(f"{text}\n")
                self._stream.flush()
        except UnicodeEncodeError:
            self._stream.write(f"{text.encode('ascii', 'replace').decode('ascii')}\n")
        except (OSError, ValueError):
            self._silence()

    def close(self) -> None:
        """Take the bar away. A second call does nothing."""
        progress, self._progress = self._progress, None
        if progress is None:
            return
        try:
            progress.stop()
        except (OSError, ValueError):
            self._silence()

    def _is_capable_terminal(self) -> bool:
        try:
            return self._stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        except ValueError:
            return False

    def _start_progress(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(file=self._stream)
        if console.width < _NARROWEST_TERMINAL:
            return
        # Two redraws a second: the display shares its core with the trainer.
        progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[live]}"),
            console=console,
            transient=True,
            refresh_per_second=2,
        )
        try:
            progress.start()
        except (OSError, ValueError):
            return
        self._progress = progress
        self._task = progress.add_task("starting", total=max(self.total_steps, 1), live="")

    def _refresh(self, completed: int | None = None) -> None:
        from rich.markup import escape

        if self._progress is None or self._task is None:
            return
        live = "  ".join(f"{name} {value}" for name, value in self._live.items())
        self._progress.update(
            self._task, description=escape(self._phase or "running"), completed=completed, live=escape(live)
        )

    def _silence(self) -> None:
        self._silent = True
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.live.auto_refresh = False
