"""Chooses the trajectories that are worth showing: the best, the worst, those without a reward, the first."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Any

from areal_x.observe.run_files import RunData

__all__ = ["ChosenSamples", "choose_samples"]

_LATE_SHARE = 0.8


@dataclass
class ChosenSamples:
    """``best`` and ``worst`` are from the last fifth of the run, ``first`` from the first step that kept any.

    ``failed`` are the last samples without a reward: a failure is no number, so it has no rank.
    """

    best: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    first: list[dict[str, Any]]


def choose_samples(run: RunData, count: int) -> ChosenSamples:
    """At most ``count`` samples of each kind, of different prompts where there are enough, later ones first."""
    last_step = max((row["step"] for row in run.steps), default=0)
    early: list[dict[str, Any]] = []
    first_step: int | None = None
    failed: deque[dict[str, Any]] = deque(maxlen=count)
    late = _Extremes(count)
    everything = _Extremes(count)
    for record in run.trajectories():
        step = record.get("step", 0)
        if first_step is None:
            first_step = step
        if step == first_step and len(early) < count:
            early.append(record)
        reward = record.get("reward")
        if not isinstance(reward, int | float):
            failed.appendleft(record)
            continue
        everything.add(record, float(reward))
        if step >= _LATE_SHARE * last_step:
            late.add(record, float(reward))
    chosen = late if late.seen else everything
    return ChosenSamples(chosen.best(), chosen.worst(), list(failed), early)


class _Extremes:
    """Keeps the best and the worst samples of a stream, a few more than wanted so that prompts can be told apart."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0
        self._best: list[tuple[float, int, dict[str, Any]]] = []
        self._worst: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, record: dict[str, Any], value: float) -> None:
        self.seen += 1
        for heap, key in ((self._best, value), (self._worst, -value)):
            entry = (key, self.seen, record)
            if len(heap) < 8 * self.count:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)

    def best(self) -> list[dict[str, Any]]:
        return self._different(self._best)

    def worst(self) -> list[dict[str, Any]]:
        return self._different(self._worst)

    def _different(self, heap: list[tuple[float, int, dict[str, Any]]]) -> list[dict[str, Any]]:
        ranked = [record for _, _, record in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
        chosen: list[dict[str, Any]] = []
        prompts: set[str] = set()
        for record in ranked:
            if record.get("prompt") not in prompts:
                prompts.add(str(record.get("prompt")))
                chosen.append(record)
        repeated = [record for record in ranked if not any(record is taken for taken in chosen)]
        return (chosen + repeated)[: self.count]
