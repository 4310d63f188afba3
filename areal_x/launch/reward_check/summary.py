"""The figures of a check, from its samples and outcomes. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from areal_x.api.reward_records import RewardOutcome
from areal_x.launch.reward_check.samples import Sample

__all__ = ["Agreement", "Spread", "agreement", "differing", "histogram", "parts_of", "percentile", "status_counts"]

STATUSES = ("ok", "not_applicable", "timeout", "crash", "error")
_MAX_BARS = 10


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, smallest and largest of some numbers."""

    mean: float
    lowest: float
    highest: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        return cls(math.fsum(values) / len(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Scores against what was expected. ``cells[expected][got]``, each false (wrong) or true (right)."""

    cells: tuple[tuple[int, int], tuple[int, int]]
    agreed: int
    known: int
    disagreeing: tuple[int, ...]
    """Indices of samples."""


def status_counts(runs: Sequence[Sequence[RewardOutcome]]) -> dict[str, int]:
    """How many calls of all runs ended in each way."""
    counts = dict.fromkeys(STATUSES, 0)
    for outcomes in runs:
        for outcome in outcomes:
            counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return counts


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def histogram(scores: Sequence[float]) -> list[tuple[str, int]]:
    """Label and count of each bar: one for each distinct score if these are few, else ten of equal width."""
    distinct = sorted(set(scores))
    if len(distinct) <= _MAX_BARS:
        return [(f"{value:g}", sum(score == value for score in scores)) for value in distinct]
    lowest, highest = distinct[0], distinct[-1]
    # Halved before the difference, which may exceed the largest number.
    width = (highest / 2 - lowest / 2) / (_MAX_BARS / 2)
    counts = [0] * _MAX_BARS
    for score in scores:
        counts[min(_MAX_BARS - 1, int(score / width - lowest / width))] += 1
    edges = [lowest + bar * width for bar in range(_MAX_BARS)] + [highest]
    return [(f"{left:.3g} … {right:.3g}", count) for left, right, count in zip(edges, edges[1:], counts, strict=False)]


def parts_of(outcomes: Sequence[RewardOutcome]) -> dict[str, Spread]:
    """The spread of each part, by name."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in outcome.parts.items():
            values.setdefault(name, []).append(value)
    return {name: Spread.of(found) for name, found in sorted(values.items())}


def agreement(samples: Sequence[Sample], outcomes: Sequence[RewardOutcome], threshold: float) -> Agreement:
    """How far the scores are what was expected. Samples without a score, or without an expectation, do not count."""
    cells = [[0, 0], [0, 0]]
    disagreeing = []
    known = 0
    for index, (sample, outcome) in enumerate(zip(samples, outcomes, strict=True)):
        if outcome.value is None or sample.expected is None:
            continue
        known += 1
        want, got = sample.expected > threshold, outcome.value > threshold
        cells[want][got] += 1
        same = math.isclose(outcome.value, sample.expected, abs_tol=1e-6) if sample.exact else want == got
        if not same:
            disagreeing.append(index)
    (a, b), (c, d) = cells
    return Agreement(((a, b), (c, d)), known - len(disagreeing), known, tuple(disagreeing))


def differing(runs: Sequence[Sequence[RewardOutcome]]) -> list[int]:
    """Indices of samples whose outcome is not the same in every run, but for rounding."""

    def numbers(outcome: RewardOutcome) -> list[float]:
        value = [] if outcome.value is None else [outcome.value]
        return [*value, *(part for _, part in sorted(outcome.parts.items())), *(outcome.token_rewards or ())]

    def same(one: RewardOutcome, other: RewardOutcome) -> bool:
        if one.status != other.status or one.parts.keys() != other.parts.keys():
            return False
        pairs = list(itertools.zip_longest(numbers(one), numbers(other), fillvalue=math.nan))
        return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in pairs)

    return [
        index
        for index, outcomes in enumerate(zip(*runs, strict=True))
        if not all(same(outcomes[0], outcome) for outcome in outcomes[1:])
    ]
