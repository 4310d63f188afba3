"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from areal_x.api.errors import ConfigError

__all__ = ["SCHEDULES", "scheduled_learning_rate"]

SCHEDULES = ("constant", "linear", "cosine")


def scheduled_learning_rate(
    step: int, *, peak: float, schedule: str, warmup_steps: int, total_steps: int, min_ratio: float = 0.0
) -> float:
    """Learning rate of optimiser step ``step`` (the first is 0).

    The warm-up rises linearly and reaches ``peak`` at its last step. Then the schedule falls from ``peak`` to
    ``min_ratio * peak``, which the step after the last (``total_steps``) would reach; ``constant`` stays at ``peak``.

    Raises:
        ConfigError: ``schedule`` is not one of ``SCHEDULES``.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"lr_schedule: {schedule!r} is not known; use one of {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    remaining = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (min_ratio + (1.0 - min_ratio) * remaining)
