"""From finished groups to the batch that is trained.

Axis letters: S sequences of the batch, N tokens of all of them laid end to end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from areal_x.api.config import RewardConfig
from areal_x.api.errors import ConfigError
from areal_x.api.records import FloatArray, TrainBatch, TrajectoryGroup

__all__ = ["build_batch", "weighted_rewards"]


def build_batch(groups: Sequence[TrajectoryGroup]) -> TrainBatch:
    """Lay all sequences of ``groups`` end to end, in the groups' order; advantages are 0 so far."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    lengths_S = np.array([len(trajectory.input_ids) for trajectory in trajectories], dtype=np.int32)
    return TrainBatch(
        input_ids=np.concatenate([trajectory.input_ids for trajectory in trajectories]),
        loss_mask=np.concatenate([trajectory.loss_mask for trajectory in trajectories]),
        logprobs=np.concatenate([trajectory.logprobs for trajectory in trajectories]),
        advantages=np.zeros(int(lengths_S.sum()), dtype=np.float32),
        lengths=lengths_S,
        group_ids=np.concatenate([np.full(len(group.trajectories), group.group_id, np.int64) for group in groups]),
        versions=np.concatenate([trajectory.versions for trajectory in trajectories]),
    )


def weighted_rewards(
    groups: Sequence[TrajectoryGroup], reward: RewardConfig, model_weights: Mapping[str, float]
) -> list[tuple[float, FloatArray]]:
    """The rewards that advantages are made of, each float32 [S] with its weight.

    That is the final reward with weight 1, or, with ``normalize_then_sum``, each of several rewards: their advantages
    are added up (GDPO, https://arxiv.org/abs/2601.05242). NaN marks a masked sample, and one that a reward did not
    apply to.

    Args:
        model_weights: of the reward models, by name.

    Raises:
        ConfigError: there are no values of each reward.
    """
    rewards_S = np.concatenate([group.rewards for group in groups]).astype(np.float32)
    if reward.aggregation == "sum_then_normalize":
        return [(1.0, rewards_S)]
    weights = {name: part.weight for name, part in reward.rewards.items()} | dict(model_weights)
    rewards = []
    for name, weight in weights.items():
        values_S = np.array([value for group in groups for value in _values_of(group, name)], dtype=np.float32)
        values_S[np.isnan(rewards_S)] = np.nan
        rewards.append((weight, values_S))
    return rewards


def _values_of(group: TrajectoryGroup, name: str) -> list[float]:
    values = []
    for trajectory in group.trajectories:
        outcome = trajectory.outcome
        if outcome is not None and outcome.status == "ok" and not outcome.values:
            raise ConfigError(
                "reward.aggregation=normalize_then_sum needs the value of each reward, and the workflow returned an "
                "outcome without 'values': return what reward_fn.outcome(...) gave, or use sum_then_normalize"
            )
        values.append(float("nan") if outcome is None else outcome.values.get(name, float("nan")))
    return values
