"""One fixed line for each step: the same columns at the same places, whatever the step reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["lag_statistics", "reward_parts", "step_header", "step_line"]

_REWARD_STATISTICS = {"count", "max", "mean", "median", "min", "processed_mean", "std"}
_MAX_PARTS = 3
_PART_WIDTH = 8


def reward_parts(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the reward's parts: every ``reward/<part>`` that is not a statistic of the whole, sorted."""
    names = [name.removeprefix("reward/") for name in metrics if name.startswith("reward/")]
    return sorted(name for name in names if name not in _REWARD_STATISTICS and "/" not in name)


def lag_statistics(metrics: Mapping[str, Any]) -> tuple[float, int] | None:
    """Mean and greatest lag of a step's trained tokens, from the counts ``staleness/lag/<k>``; None without any."""
    tokens = weighted = greatest = 0
    for name, value in metrics.items():
        lag = name.removeprefix("staleness/lag/")
        if lag != name and lag.isdecimal() and value:
            tokens += int(value)
            weighted += int(lag) * int(value)
            greatest = max(greatest, int(lag))
    return (weighted / tokens, greatest) if tokens else None


def step_header(total_steps: int, parts: Sequence[str] = ()) -> str:
    """The heading above step lines of the same ``total_steps`` and ``parts``."""
    cells = [f"{'step':>{2 * _step_digits(total_steps) + 1}}", f"{'version':>7}", f"{'reward':>7}"]
    cells += [_fit(part, _PART_WIDTH) for part in parts[:_MAX_PARTS]]
    cells += [
        f"{'loss':>9}",
        f"{'lag/max':>8}",
        f"{'masked':>7}",
        f"{'samples/s':>9}",
        f"{'F':>5}",
        f"{'seconds':>7}",
    ]
    return "  ".join(cells)


def step_line(metrics: Mapping[str, Any], total_steps: int, parts: Sequence[str] = ()) -> str:
    """One step for people. A metric that the step does not have leaves its column blank.

    Columns: step of all, version, mean reward, its first three ``parts``, loss, mean and greatest lag in versions,
    share of sampled tokens masked as over age, samples per second, fraction of bound, seconds of the step.
    """
    digits = _step_digits(total_steps)
    lag = lag_statistics(metrics)
    masked = _number(metrics.get("rollout/masked_token_share"))
    cells = [f"{int(metrics.get('step', 0)):>{digits}}/{total_steps:<{digits}}"]
    cells += [_fixed(metrics.get("version"), 7, 0), _fixed(metrics.get("reward/mean"), 7, 3)]
    cells += [_fixed(metrics.get(f"reward/{part}"), _PART_WIDTH, 3) for part in parts[:_MAX_PARTS]]
    cells += [
        _fixed(metrics.get("train/loss"), 9, 4),
        " " * 8 if lag is None else _fit(f"{lag[0]:.1f}/{lag[1]}", 8),
        " " * 7 if masked is None else _fit(f"{masked:.1%}", 7),
        _fixed(metrics.get("perf/samples_per_second"), 9, 1),
        _fixed(metrics.get("perf/fraction_of_bound"), 5, 2),
        _fixed(metrics.get("perf/step_seconds"), 7, 2),
    ]
    return "  ".join(cells)


def _step_digits(total_steps: int) -> int:
    return max(2, len(str(total_steps)))


def _number(value: Any) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)


def _fixed(value: Any, width: int, decimals: int) -> str:
    """``value`` in exactly ``width`` characters; with fewer digits when it is too long."""
    number = _number(value)
    if number is None:
        return " " * width
    text = f"{number:.{decimals}f}"
    return f"{text:>{width}}" if len(text) <= width else _fit(f"{number:.1e}", width)


def _fit(text: str, width: int) -> str:
    """``text`` right-aligned, cut to ``width`` characters."""
    return f"{text[:width]:>{width}}"
