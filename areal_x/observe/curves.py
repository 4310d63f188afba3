"""``curves.png``: reward, accuracy and lag of a run in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from areal_x.observe.run_files import RunData, load_run
from areal_x.observe.step_line import reward_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["smoothed", "write_curves"]

_INK, _MUTED, _GRID = "#1c2430", "#667085", "#e6e9ef"
_BLUE, _GREEN = "#2f6fed", "#0f9d75"
_SET_COLOURS = (_GREEN, "#b45309", "#7c3aed", "#0369a1")
_MAX_LINES_INSIDE = 4
_PART_COLOURS = ("#c2570c", "#8250df", "#b42367", "#0e7490")


def smoothed(values: list[float], width: int = 5) -> list[float]:
    """Mean over the last ``width`` values at each place, fewer at the beginning."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return ((totals[ends] - totals[starts]) / (ends - starts)).tolist()


def write_curves(run_dir: Path) -> Path:
    """Draw ``curves.png`` of a run, whole or partial, and return its path.

    Raises:
        DataError: ``run_dir`` holds no run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    run = load_run(run_dir)
    # A figure with its own canvas: no global backend is chosen, so a user's notebook keeps its own.
    figure = Figure(figsize=(11.2, 4.0), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    curves, histogram = figure.subplots(1, 2, width_ratios=[2.3, 1])
    _draw_curves(curves, run)
    _draw_lag(histogram, run)
    path = run.run_dir / "curves.png"
    figure.savefig(path, metadata={"Software": None})
    return path


def _draw_curves(axes: Axes, run: RunData) -> None:
    from matplotlib.ticker import MaxNLocator

    _style(axes, "Reward and held-out accuracy", "step")
    rows = [row for row in run.trained_steps if isinstance(row.get("reward/mean"), int | float)]
    steps = [row["step"] for row in rows]
    rewards = [float(row["reward/mean"]) for row in rows]
    if rows:
        axes.plot(steps, rewards, color=_BLUE, alpha=0.25, linewidth=1.0)
        marker = "o" if len(rows) == 1 else ""
        axes.plot(steps, smoothed(rewards), color=_BLUE, linewidth=2.2, marker=marker, label="mean reward (5 steps)")
    parts = reward_parts({name: None for row in rows for name in row})
    for part, colour in zip(parts if len(parts) > 1 else [], _PART_COLOURS, strict=False):
        known = [(row["step"], float(row[f"reward/{part}"])) for row in rows if row.get(f"reward/{part}") is not None]
        if known:
            axes.plot(
                [step for step, _ in known],
                smoothed([value for _, value in known]),
                color=colour,
                linewidth=1.2,
                linestyle=(0, (4, 2)),
                marker="." if len(known) == 1 else "",
                label=f"{part} (reward part)",
            )
    _draw_evaluations(axes, run)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if num_lines := len(axes.get_legend_handles_labels()[0]):
        is_crowded = num_lines > _MAX_LINES_INSIDE
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 3}
        place = below if is_crowded else {"loc": "lower right"}
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK, **place)
    else:
        _say_empty(axes, "no step was finished")
    shown = [*rewards, *(value for points in run.accuracies.values() for _, value in points)]
    if shown and min(shown) >= 0 and max(shown) <= 1:
        axes.set_ylim(-0.03, 1.06)


def _draw_evaluations(axes: Axes, run: RunData) -> None:
    """Accuracy of each data set with its first and last value, and thinner, in the same colour, its pass@k and
    majority@k."""
    colours = {dataset: _SET_COLOURS[i % len(_SET_COLOURS)] for i, dataset in enumerate(run.accuracies)}
    for name, points in run.several_samples.items():
        metric, _, dataset = name.partition(", ")
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=colours.get(dataset, _GREEN),
            alpha=0.6,
            linewidth=1.1,
            linestyle=(0, (1, 2)) if metric.startswith("majority") else (0, (5, 2)),
            marker=".",
            label=f"{metric} on {dataset}",
        )
    for dataset, points in run.accuracies.items():
        colour = colours[dataset]
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=colour,
            linewidth=1.4,
            marker="o",
            markersize=6.5,
            markeredgecolor="white",
            label=f"accuracy on {dataset}",
            zorder=5,
        )
        for index in sorted({0, len(points) - 1}):
            axes.annotate(
                f"{points[index][1]:.2f}",
                points[index],
                xytext=(9, -4) if index == 0 else (0, -16 if points[index][1] > 0.1 else 9),
                textcoords="offset points",
                ha="left" if index == 0 else "center",
                color=colour,
                fontsize=9.5,
                fontweight="bold",
            )


def _draw_lag(axes: Axes, run: RunData) -> None:
    counts = run.lag_counts()
    bound = run.setting("rollout", "max_staleness")
    _style(axes, "Lag of trained tokens", "versions behind")
    if not counts:
        _say_empty(axes, "no token was trained")
        return
    total = sum(counts.values()) or 1
    shares = [count / total for count in counts.values()]
    bars = axes.bar(list(counts), shares, width=0.72, color=_BLUE)
    axes.bar_label(bars, [f"{share:.1%}" for share in shares], color=_INK, fontsize=9, padding=2)
    last = max([*counts, bound if isinstance(bound, int) else 0])
    axes.set_xlim(-0.7, last + 0.9)
    axes.set_ylim(0, max(shares) * 1.15)
    axes.set_xticks(range(last + 1) if last < 12 else np.linspace(0, last, 7).astype(int))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if isinstance(bound, int):
        axes.axvline(bound + 0.5, color="#b42318", linewidth=1.2, linestyle=(0, (3, 2)))
        axes.text(
            bound + 0.54,
            max(shares) * 1.1,
            f"bound {bound}",
            rotation=90,
            ha="left",
            va="top",
            color="#b42318",
            fontsize=9,
        )


def _style(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=_INK, pad=10)
    axes.set_xlabel(x_label, color=_MUTED, fontsize=9.5)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c5cad3")


def _say_empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_MUTED)
