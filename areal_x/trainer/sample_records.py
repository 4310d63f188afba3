"""Which samples of a step are kept for people to look at: the best, the worst, and some drawn at random."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from areal_x.api.records import FloatArray, IntArray, TrajectoryGroup
from areal_x.observe.trajectory_records import trajectory_record

__all__ = ["choose_rows", "sample_records"]


def choose_rows(rewards: Sequence[float], count: int, seed: int) -> list[int]:
    """Indices of the best, the worst and random samples, each once; ``count`` in all, or all if it is negative.

    Samples without a reward (NaN) are neither the best nor the worst, unless no others are left.
    """
    if count < 0 or count >= len(rewards):
        return list(range(len(rewards)))
    values = np.asarray(rewards, dtype=np.float64)
    num_scored = len(values) - int(np.isnan(values).sum())
    scored, unscored = np.split(np.argsort(values, kind="stable"), [num_scored])  # Those without a reward come last.
    half = num_scored // 2
    order: list[int] = np.concatenate([scored[:half], unscored, scored[half:]]).tolist()
    num_best = (count + 2) // 3
    num_worst = (count + 1) // 3
    best, middle, worst = (
        order[len(order) - num_best :],
        order[num_worst : len(order) - num_best],
        order[:num_worst],
    )
    return [*reversed(best), *worst, *random.Random(seed).sample(middle, count - num_best - num_worst)]


def sample_records(
    groups: Sequence[TrajectoryGroup],
    advantages_S: FloatArray | None,
    decode_tokens: Callable[[IntArray], list[str]],
    *,
    step: int,
    version: int,
    count: int,
) -> list[dict[str, Any]]:
    """Records of the chosen samples of one step; ``advantages_S`` are in the order of the groups' trajectories;
    ``None``: nothing was trained."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards = [reward for group in groups for reward in group.rewards.tolist()]
    return [
        trajectory_record(
            trajectories[row],
            decode_tokens(trajectories[row].input_ids),
            step=step,
            version=version,
            reward=None if math.isnan(rewards[row]) else rewards[row],
            advantage=None if advantages_S is None else float(advantages_S[row]),
        )
        for row in choose_rows(rewards, count, seed=step)
    ]
