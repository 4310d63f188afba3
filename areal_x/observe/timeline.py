"""Bounds the volume of time-line spans: many short spans of a lane become one record of activity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_SPANS_PER_LANE", "AnySpan", "Span", "coalesce", "mean_in_flight"]

MAX_SPANS_PER_LANE = 24
"""More spans than this of one lane in one step are written as one activity record."""
_NUM_BINS = 48


class Span(NamedTuple):
    """Something that ``lane`` did from ``start`` to ``end``, in ``time.monotonic()`` seconds."""

    lane: str
    name: str
    start: float
    end: float
    info: dict[str, Any]


AnySpan = Span | tuple[str, str, float, float, dict[str, Any]]
"""A span, or its values: a tuple of thousands of them costs less to make."""


def mean_in_flight(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Mean number of spans in flight between neighbouring ``edges`` [E]; returns float64 [E - 1].

    The integral of the count up to time x is the sum over spans of ``max(0, x - start) - max(0, x - end)``; both sums
    come from one sort and one cumulative sum, so the cost is O(n log n) and not spans times bins.
    """

    def ramp(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        points = np.sort(points)
        totals = np.concatenate([[0.0], np.cumsum(points)])
        below = np.searchsorted(points, edges)
        return below * edges - totals[below]

    # Times count from the first edge: cumulative sums of large clock values would lose digits.
    starts, ends, edges = starts - edges[0], ends - edges[0], edges - edges[0]
    return np.maximum(np.diff(ramp(starts) - ramp(ends)) / np.diff(edges), 0.0)


def coalesce(spans: Iterable[AnySpan], origin: float) -> list[dict[str, Any]]:
    """Records of ``spans`` with times in seconds since ``origin``: as they are, or one activity record for a busy lane.

    An activity record has ``in_flight``: the mean number of spans in each of equally wide bins from ``start`` to
    ``end``, and ``count``: how many spans it stands for. Activity records of one lane add up where they overlap.
    """
    lanes: dict[str, list[AnySpan]] = {}
    for span in spans:
        lanes.setdefault(span[0], []).append(span)
    records: list[dict[str, Any]] = []
    for lane, members in lanes.items():
        if len(members) > MAX_SPANS_PER_LANE:
            records.append(_activity(lane, members, origin))
        else:
            records.extend(
                {**info, "lane": lane, "name": name, "start": round(start - origin, 5), "end": round(end - origin, 5)}
                for _, name, start, end, info in members
            )
    return records


def _activity(lane: str, spans: list[AnySpan], origin: float) -> dict[str, Any]:
    times = np.array([(start, end) for _, _, start, end, _ in spans], dtype=np.float64) - origin
    start, end = float(times[:, 0].min()), float(times[:, 1].max())
    end = max(end, start + 1e-6)
    counts = mean_in_flight(times[:, 0], times[:, 1], np.linspace(start, end, _NUM_BINS + 1))
    return {
        "lane": lane,
        "name": spans[0][1],
        "start": round(start, 5),
        "end": round(end, 5),
        "count": len(spans),
        "in_flight": np.round(counts, 2).tolist(),
    }
