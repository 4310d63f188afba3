"""How a step's wall-clock time was spent, and the fraction of the bound that it reached."""

from __future__ import annotations

import time

__all__ = ["StepClock"]


class StepClock:
    """Turns running totals (busy seconds of the roles, samples) into one step's figures.

    The fraction of the bound is that of ``max(generation, training + publication) / step``: no schedule can be quicker than its
    busiest role. Both terms are what the roles took in this very step, so they contain what two busy processes cost each other;
    the benchmark measures them alone.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._step_started = self._started
        self._totals: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._started

    def restart(self, **totals: float) -> None:
        """Begin a step now, with the running totals as they stand."""
        self._step_started = time.monotonic()
        self._totals = totals

    def finish_step(
        self, *, num_samples: int, publish_seconds: float, wait_seconds: float, **totals: float
    ) -> dict[str, float]:
        """Metrics of the step that ends now; the next one begins."""
        step_seconds = time.monotonic() - self._step_started
        generation_seconds, train_seconds = (
            totals[role] - self._totals.get(role, 0.0) for role in ("generation", "training")
        )
        self.restart(**totals)
        busiest = max(generation_seconds, train_seconds + publish_seconds)
        return {
            "time": self.elapsed,
            "perf/step_seconds": step_seconds,
            "perf/generation_seconds": generation_seconds,
            "perf/train_seconds": train_seconds,
            "perf/publish_seconds": publish_seconds,
            "perf/wait_seconds": wait_seconds,
            "perf/samples_per_second": num_samples / step_seconds,
            "perf/fraction_of_bound": busiest / step_seconds,
        }
