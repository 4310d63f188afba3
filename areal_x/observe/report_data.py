"""What the report shows, reduced to a size that a browser opens at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from areal_x.observe.run_files import RunData
from areal_x.observe.sample_choice import choose_samples
from areal_x.observe.step_line import reward_parts
from areal_x.observe.summary import format_duration, server_events

__all__ = ["headline", "report_data"]

_MAX_POINTS = 600
_MAX_SPANS = 6000
_MAX_SAMPLES = 8
_MAX_TOKENS = 3000
_RARE_LANES = {"evaluation", "warm_start"}


def report_data(run: RunData) -> dict[str, Any]:
    """Everything that the report's script draws, as JSON can hold it."""
    rows = run.trained_steps
    parts = reward_parts({name: None for row in rows for name in row})
    series = {
        "reward": _series(rows, "reward/mean"),
        "loss": _series(rows, "train/loss"),
        "masked": _series(rows, "rollout/masked_token_share"),
        "speed": _series(rows, "perf/samples_per_second"),
        "bound": _series(rows, "perf/fraction_of_bound"),
    }
    chosen = choose_samples(run, _MAX_SAMPLES)
    return {
        "series": series,
        "parts": {part: _series(rows, f"reward/{part}") for part in parts},
        "accuracy": run.accuracies,
        "severalSamples": run.several_samples,
        "lagCounts": [[lag, count] for lag, count in run.lag_counts().items()],
        "maxStaleness": run.setting("rollout", "max_staleness"),
        "timeline": _timeline(run),
        "samples": {
            "best": [_sample(record) for record in chosen.best],
            "worst": [_sample(record) for record in chosen.worst],
            "failed": [_sample(record) for record in chosen.failed],
            "first": [_sample(record) for record in chosen.first],
        },
        "outcomes": _outcomes(run),
    }


def headline(run: RunData) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures at the top of the report."""
    figures: list[tuple[str, str, str]] = []
    for dataset, points in run.accuracies.items():
        before, after = points[0][1], points[-1][1]
        value = f"{before:.3f} → {after:.3f}" if len(points) > 1 else f"{before:.3f}"
        figures.append(("Accuracy", value, f"{dataset}, held out{', before → after' if len(points) > 1 else ', once'}"))
    rewards = run.values("reward/mean")
    if rewards:
        width = max(1, min(5, len(rewards) // 2))
        before, after = sum(rewards[:width]) / width, sum(rewards[-width:]) / width
        value, note = f"{before:.2f} → {after:.2f}", f"first and last {width} steps"
        figures.append(("Mean reward", value, note) if width > 1 else ("Mean reward", f"{after:.2f}", "last step"))
    speed, share = run.steady_mean("perf/samples_per_second"), run.steady_mean("perf/fraction_of_bound")
    ceiling = run.steady_mean("perf/two_process_ceiling")
    if speed is not None:
        figures.append(
            ("Speed", f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}", "samples per second, steady state")
        )
    if share is not None:
        note = f"{share / ceiling:.2f} of the two-process ceiling" if ceiling else "1 is the best possible"
        figures.append(("Fraction of bound", f"{share:.2f}", note))
    counts, bound = run.lag_counts(), run.setting("rollout", "max_staleness")
    if counts:
        total = sum(counts.values())
        within = sum(count for lag, count in counts.items() if not isinstance(bound, int) or lag <= bound)
        note = f"of trained tokens within the bound of {bound}" if isinstance(bound, int) else "no bound known"
        figures.append(("Staleness", f"{within / total:.0%}" if within == total else f"{within / total:.2%}", note))
    published = run.steady_mean("perf/publish_seconds")
    if published is not None:
        figures.append(("Weight update", format_duration(published), "until new weights are served, steady state"))
    events = server_events(run)
    if events:
        figures.append(("Servers", events[0], ", ".join(events[1:]) or "nothing else happened to them"))
    if run.duration is not None:
        steps = run.trained_steps[-1]["step"] if run.trained_steps else 0
        figures.append(("Duration", format_duration(run.duration), "1 step" if steps == 1 else f"{steps} steps"))
    return figures


def _series(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return _thin([(row["step"], float(row[name])) for row in rows if isinstance(row.get(name), int | float)])


def _thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most ``_MAX_POINTS`` points: each the mean of as many neighbours as needed."""
    width = -(-len(points) // _MAX_POINTS) or 1
    thinned = []
    for start in range(0, len(points), width):
        part = points[start : start + width]
        thinned.append((part[-1][0], float(f"{sum(value for _, value in part) / len(part):.6g}")))
    return thinned


def _timeline(run: RunData) -> dict[str, Any]:
    """The spans of the last steps, all rare ones, and how much of training went on while tokens were generated."""
    spans = [span for span in run.spans() if _is_span(span)]
    rare = [span for span in spans if span["lane"] in _RARE_LANES]
    common = [span for span in spans if span["lane"] not in _RARE_LANES]
    omitted = max(0, len(common) - _MAX_SPANS)
    kept = rare[-_MAX_SPANS:] + common[omitted:]
    return {"spans": kept, "omitted": omitted, "overlap": _overlap(common)}


def _is_span(span: dict[str, Any]) -> bool:
    start, end = span.get("start"), span.get("end")
    return (
        isinstance(span.get("lane"), str)
        and isinstance(start, int | float)
        and isinstance(end, int | float)
        and end >= start
    )


def _overlap(spans: list[dict[str, Any]]) -> float | None:
    """Share of the training time in which generation went on too; None without both.

    Sampled at 20,000 moments of the run, which is exact enough for a percentage.
    """
    training = [(span["start"], span["end"]) for span in spans if span["lane"] == "training"]
    if not training:
        return None
    edges = np.linspace(min(start for start, _ in training), max(end for _, end in training), 20001)
    moments = (edges[:-1] + edges[1:]) / 2
    is_training, is_generating = np.zeros(len(moments), np.bool_), np.zeros(len(moments), np.bool_)
    for start, end in training:
        is_training[np.searchsorted(moments, start) : np.searchsorted(moments, end)] = True
    found = False
    for span in spans:
        if span["lane"] != "generation":
            continue
        found = True
        counts = span.get("in_flight") or [1]
        bounds = np.searchsorted(moments, np.linspace(span["start"], span["end"], len(counts) + 1))
        for index, count in enumerate(counts):
            if count > 0:
                is_generating[bounds[index] : bounds[index + 1]] = True
    if not found or not is_training.any():
        return None
    return float((is_training & is_generating).sum() / is_training.sum())


def _sample(record: dict[str, Any]) -> dict[str, Any]:
    """A trajectory as the report needs it; of a very long one the first tokens."""
    tokens = record.get("tokens")
    shown = dict(record)
    if isinstance(tokens, list) and len(tokens) > _MAX_TOKENS:
        shown |= {"tokens": tokens[:_MAX_TOKENS], "omittedTokens": len(tokens) - _MAX_TOKENS}
    for name in ("prompt", "completion"):
        shown[name] = str(record.get(name) or "")[: 4 * _MAX_TOKENS]
    return shown


def _outcomes(run: RunData) -> dict[str, Any]:
    """Rows (status, reason, count) of all samples, or of the kept ones when the metrics do not count outcomes."""
    counts = run.outcome_counts()
    is_whole = bool(counts)
    if not is_whole:
        for record in run.trajectories():
            key = (str(record.get("status", "unknown")), str(record.get("reason") or ""))
            counts[key] = counts.get(key, 0) + 1
    rows = sorted(((status, reason, count) for (status, reason), count in counts.items()), key=lambda row: -row[2])
    return {"rows": rows[:100], "isWhole": is_whole}
