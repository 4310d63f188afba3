"""What the samples of a step say about their rewards and shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from areal_x.api.config_checks import RESERVED_NAMES
from areal_x.api.records import FloatArray, Trajectory, TrajectoryGroup
from areal_x.api.reward_records import finite_number

__all__ = ["mean_metadata", "mean_parts", "metric_name", "reward_metrics"]

_MAX_VALUES, _MAX_LENGTH = 12, 40


def reward_metrics(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """Mean reward, its parts, and the shape of the samples of one step, if there are any. Masked samples (reward NaN)
    have no reward.

    ``reward/mean`` is of the rewards as they were given; ``reward/processed_mean`` is there where post-processing
    changed them.
    """
    if not groups:
        return {}
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards = np.concatenate([group.rewards for group in groups])
    scored = ~np.isnan(rewards)
    # Sums of float32 rewards may be larger than float32.
    final = rewards[scored].astype(np.float64)
    raw = np.concatenate([_raw_rewards(group) for group in groups])[scored].astype(np.float64)
    starts = np.cumsum([0, *(len(group.rewards) for group in groups[:-1])])
    is_uniform = np.fmax.reduceat(rewards, starts) == np.fmin.reduceat(rewards, starts)
    num_generated = sum(end - start for trajectory in trajectories for start, end, _ in trajectory.version_spans)
    reasons = Counter([trajectory.stop_reason for trajectory in trajectories])
    seconds = [t.outcome.seconds for t in trajectories if t.outcome is not None]
    metrics = {
        "reward/mean": float(raw.mean()),
        "reward/std": float(raw.std()),
        "perf/reward_seconds": float(np.mean(seconds)) if seconds else 0.0,
        "perf/reward_seconds_max": max(seconds, default=0.0),
        "rollout/uniform_groups": float(is_uniform.mean()),
        "rollout/completion_tokens": num_generated / len(trajectories),
        "rollout/truncated_share": reasons["length"] / len(trajectories),
        "rollout/num_turns": float(np.mean([trajectory.num_turns for trajectory in trajectories])),
    }
    if not np.array_equal(final, raw):
        metrics["reward/processed_mean"] = float(final.mean())
    return metrics | mean_metadata(trajectories) | mean_parts(trajectories)


def _raw_rewards(group: TrajectoryGroup) -> FloatArray:
    return group.rewards if group.raw_rewards is None else group.raw_rewards


def mean_parts(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The mean of every part that rewards reported, as ``reward/<part>``, over the samples that have it."""
    values: dict[str, list[float]] = {}
    for trajectory in trajectories:
        if trajectory.outcome is not None:
            for part, value in trajectory.outcome.parts.items():
                values.setdefault(part, []).append(value)
    return {metric_name(part): float(np.mean(part_values)) for part, part_values in values.items()}


def metric_name(part: str) -> str:
    """``reward/<part>``, or ``reward/part/<part>`` where the first is the name of a statistic of the whole."""
    return f"reward/part/{part}" if part in RESERVED_NAMES else f"reward/{part}"


def mean_metadata(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Metadata as metrics: the mean of finite numbers, and the share of each value of a few short words (``reason`` is
    counted among the outcomes; an ``answer`` says nothing of another prompt's). Longer texts and whatever else there is
    stay with the samples."""
    values: dict[str, list[Any]] = {}
    for trajectory in trajectories:
        if trajectory.outcome is not None:
            for key, value in trajectory.outcome.metadata.items():
                if key not in ("reason", "answer"):
                    values.setdefault(key, []).append(value)
    metrics: dict[str, float] = {}
    for key, found in values.items():
        numbers = [float(value) for value in found if isinstance(value, bool) or finite_number(value) is not None]
        if numbers:
            metrics[metric_name(key)] = float(np.mean(numbers))
        elif all(isinstance(value, str) and len(value) <= _MAX_LENGTH for value in found):
            counts = Counter(found)
            if len(counts) <= _MAX_VALUES:
                metrics |= {f"{metric_name(key)}/{value}": count / len(found) for value, count in counts.items()}
    return metrics
