"""From finished groups to the batch that is trained, and what is worth knowing about it.

Axis letters: S sequences of the batch, N tokens of all of them laid end to end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from areal_x.api.records import FloatArray, TrainBatch, Trajectory, TrajectoryGroup
from areal_x.engine.train.advantages import group_advantages

__all__ = ["build_batch", "reward_metrics"]


def build_batch(groups: Sequence[TrajectoryGroup], *, normalize_std: bool) -> tuple[TrainBatch, FloatArray]:
    """Lay all sequences of ``groups`` end to end with their group-relative advantages.

    Returns:
        The batch, and the advantage of each sequence, float32 [S], in the order of the groups' trajectories.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards_S = np.concatenate([group.rewards for group in groups]).astype(np.float32)
    group_ids_S = np.concatenate([np.full(len(group.trajectories), group.group_id, np.int64) for group in groups])
    lengths_S = np.array([len(trajectory.input_ids) for trajectory in trajectories], dtype=np.int32)
    advantages_S = group_advantages(rewards_S, group_ids_S, normalize_std=normalize_std)
    batch = TrainBatch(
        input_ids=np.concatenate([trajectory.input_ids for trajectory in trajectories]),
        loss_mask=np.concatenate([trajectory.loss_mask for trajectory in trajectories]),
        logprobs=np.concatenate([trajectory.logprobs for trajectory in trajectories]),
        advantages=np.repeat(advantages_S, lengths_S).astype(np.float32),
        lengths=lengths_S,
        group_ids=group_ids_S,
    )
    return batch, advantages_S


def reward_metrics(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """Mean reward, its parts, and the shape of the samples of one step. Masked samples (reward NaN) have no reward."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards_of_groups = [group.rewards[~np.isnan(group.rewards)] for group in groups]
    rewards = np.concatenate(rewards_of_groups)
    num_generated = np.array([count_sampled(trajectory) for trajectory in trajectories])
    reasons = Counter(trajectory.stop_reason for trajectory in trajectories)
    metrics = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "rollout/uniform_groups": float(np.mean([np.ptp(values) == 0 for values in rewards_of_groups])),
        "rollout/completion_tokens": float(num_generated.mean()),
        "rollout/truncated_share": reasons["length"] / len(trajectories),
        "rollout/num_turns": float(np.mean([trajectory.num_turns for trajectory in trajectories])),
    }
    return metrics | mean_parts(trajectories)


def mean_parts(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The mean of every part that rewards reported, as ``reward/<part>``."""
    values: dict[str, list[float]] = {}
    for trajectory in trajectories:
        if trajectory.outcome is not None:
            for part, value in trajectory.outcome.parts.items():
                values.setdefault(part, []).append(value)
    return {f"reward/{part}": float(np.mean(part_values)) for part, part_values in values.items()}


def count_sampled(trajectory: Trajectory) -> int:
    """Tokens that an engine sampled, trained or not."""
    return sum(span.end - span.start for span in trajectory.version_spans)
