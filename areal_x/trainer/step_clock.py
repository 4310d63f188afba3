"""How a step's wall-clock time was spent, and the fraction of the bound that it reached."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BusyTotals", "StepClock"]


@dataclass(frozen=True, slots=True)
class BusyTotals:
    """Seconds that each role has worked so far, both read at the moment ``at`` (``time.monotonic()`` seconds)."""

    at: float
    generation: float
    training: float


class StepClock:
    """Turns running totals into one step's figures.

    The fraction of the bound is ``max(generation, training) / step``: no schedule can be quicker than its busiest role.
    Both terms are what the roles took between the same two moments, so they contain what two busy processes cost each
    other; the benchmark measures them alone.

    Args:
        totals: the roles' busy seconds at the start.
        takes_turns: the roles share a device and never work at once, so the bound is the sum of both.
    """

    def __init__(self, totals: BusyTotals, takes_turns: bool = False) -> None:
        self._totals = totals
        self._takes_turns = takes_turns

    def exclude(self, before: BusyTotals, after: BusyTotals) -> None:
        """Leave out what was done between two moments of the present step: an evaluation is no part of it."""
        self._totals = BusyTotals(
            self._totals.at + after.at - before.at,
            self._totals.generation + after.generation - before.generation,
            self._totals.training + after.training - before.training,
        )

    def finish_step(self, totals: BusyTotals, *, num_samples: int, wait_seconds: float) -> dict[str, float]:
        """Metrics of the step that ends with ``totals``; the next one begins.

        Args:
            totals: the roles' busy seconds so far.
            num_samples: samples that the step trained.
            wait_seconds: how long the trainer waited for them.
        """
        before, self._totals = self._totals, totals
        step_seconds = totals.at - before.at
        generation_seconds = totals.generation - before.generation
        train_seconds = totals.training - before.training
        roles = (generation_seconds, train_seconds)
        bound_seconds = sum(roles) if self._takes_turns else max(roles)
        return {
            "perf/step_seconds": step_seconds,
            "perf/generation_seconds": generation_seconds,
            "perf/train_seconds": train_seconds,
            "perf/wait_seconds": wait_seconds,
            "perf/samples_per_second": num_samples / step_seconds,
            "perf/fraction_of_bound": bound_seconds / step_seconds,
        }
