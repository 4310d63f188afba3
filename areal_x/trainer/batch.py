"""From finished groups to the batch that is trained.

Axis letters: S sequences of the batch, N tokens of all of them laid end to end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from areal_x.api.config import AlgorithmConfig, RewardConfig
from areal_x.api.errors import ConfigError
from areal_x.api.records import FloatArray, TrainBatch, TrajectoryGroup
from areal_x.engine.train.advantages import group_advantages

__all__ = ["build_batch", "sample_advantages"]


def build_batch(
    groups: Sequence[TrajectoryGroup],
    algorithm: AlgorithmConfig,
    reward: RewardConfig,
    model_weights: Mapping[str, float] | None = None,
) -> tuple[TrainBatch, FloatArray]:
    """Lay all sequences of ``groups`` end to end with their advantages.

    Args:
        model_weights: of the reward models, by name.

    Returns:
        The batch, and the advantage of each sequence, float32 [S], in the order of the groups' trajectories.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    group_ids_S = np.concatenate([np.full(len(group.trajectories), group.group_id, np.int64) for group in groups])
    lengths_S = np.array([len(trajectory.input_ids) for trajectory in trajectories], dtype=np.int32)
    advantages_S = sample_advantages(groups, group_ids_S, algorithm, reward, model_weights or {})
    batch = TrainBatch(
        input_ids=np.concatenate([trajectory.input_ids for trajectory in trajectories]),
        loss_mask=np.concatenate([trajectory.loss_mask for trajectory in trajectories]),
        logprobs=np.concatenate([trajectory.logprobs for trajectory in trajectories]),
        advantages=np.repeat(advantages_S, lengths_S).astype(np.float32),
        lengths=lengths_S,
        group_ids=group_ids_S,
    )
    return batch, advantages_S


def sample_advantages(
    groups: Sequence[TrajectoryGroup],
    group_ids_S: npt.NDArray[np.int64],
    algorithm: AlgorithmConfig,
    reward: RewardConfig,
    model_weights: Mapping[str, float] | None = None,
) -> FloatArray:
    """One advantage for each sequence, float32 [S]: of the final rewards, or, with ``normalize_then_sum``, the weighted
    sum of the advantages of each of several rewards (GDPO, https://arxiv.org/abs/2601.05242). A reward that did not
    apply to a sample adds nothing to it."""
    rewards_S = np.concatenate([group.rewards for group in groups]).astype(np.float32)
    names = algorithm.baseline, algorithm.scale_by
    if reward.aggregation == "sum_then_normalize":
        return group_advantages(rewards_S, group_ids_S, *names)
    total_S = np.zeros(len(rewards_S), dtype=np.float32)
    weights = {name: part.weight for name, part in reward.rewards.items()} | dict(model_weights or {})
    for name, weight in weights.items():
        values_S = np.array([value for group in groups for value in _values_of(group, name)], dtype=np.float32)
        values_S[np.isnan(rewards_S)] = np.nan  # Masked samples.
        total_S += np.float32(weight) * group_advantages(values_S, group_ids_S, *names)
    return total_S


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
