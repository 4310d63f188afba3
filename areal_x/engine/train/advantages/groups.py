"""Advantages by group: one for each sample. Axis letters: S samples, G groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from areal_x.api.advantage_api import Advantages, RewardedSamples
from areal_x.api.algorithm_config import BASELINES, SCALES
from areal_x.api.records import FloatArray

__all__ = ["group", "group_advantages", "raft"]

_Floats = npt.NDArray[np.float64]


def group(
    samples: RewardedSamples, baseline: str = "group_mean", scale_by: str = "group_std", eps: float = 1e-6
) -> Advantages:
    """``group_advantages`` of the rewards; KL penalties are taken from them first, summed over each sample, as RLOO
    does (https://arxiv.org/abs/2402.14740, equation 2)."""
    return Advantages(group_advantages(samples.penalized_rewards, samples.group_ids, baseline, scale_by, eps))


def raft(samples: RewardedSamples, threshold: float | None = None) -> Advantages:
    """Rejection sampling (RAFT, https://arxiv.org/abs/2304.06767): 1 for samples that are learnt, 0 for the others ::

        a_i = 1 where r_i is the best of its group and the group has a worse one        without a threshold
        a_i = 1 where r_i > threshold                                                   with one

    KL penalties are taken from the rewards first.
    """
    rewards_S = samples.penalized_rewards
    if threshold is not None:
        return Advantages((rewards_S > threshold).astype(np.float32))  # NaN is above nothing.
    learnt_S = np.zeros(len(rewards_S), dtype=np.float32)
    counted_S = samples.counted
    rewards = rewards_S[counted_S]
    ids_G, group = np.unique(samples.group_ids[counted_S], return_inverse=True)
    best_G, worst_G = np.full(len(ids_G), -np.inf), np.full(len(ids_G), np.inf)
    np.maximum.at(best_G, group, rewards)
    np.minimum.at(worst_G, group, rewards)
    learnt_S[counted_S] = (rewards == best_G[group]) & (best_G > worst_G)[group]
    return Advantages(learnt_S)


def group_advantages(
    rewards: npt.ArrayLike,
    group_ids: npt.ArrayLike,
    baseline: str = "group_mean",
    scale_by: str = "group_std",
    eps: float = 1e-6,
) -> FloatArray:
    """Reward minus a baseline, divided by a deviation ::

        A_i = (r_i - baseline_i) / (std + eps)

    Groups are found by id, so they may differ in size and lie in any order. A group of one sequence, or one whose
    rewards are all equal, gets exactly 0 from the baselines of groups. A reward of NaN marks a masked sample: its
    advantage is 0, and every mean and deviation is that of the others.

    Args:
        rewards: finite scalars, or NaN, [S].
        group_ids: integers [S].
        baseline: ``group_mean`` (GRPO, https://arxiv.org/abs/2402.03300), ``leave_one_out``: the mean of the group's
            others (RLOO, https://arxiv.org/abs/2402.14740), ``batch_mean`` (REINFORCE,
            https://doi.org/10.1007/BF00992696), or ``none``.
        scale_by: the population standard deviation of the rewards of the group (``group_std``, GRPO) or of all of them
            (``batch_std``, Lite PPO, https://arxiv.org/abs/2508.08221), or ``none`` (Dr. GRPO,
            https://arxiv.org/abs/2503.20783). A deviation of 0 divides nothing.
        eps: added to the deviation, keeps the division finite for nearly equal rewards.

    Returns:
        float32 [S].

    Raises:
        ValueError: the lengths differ, a reward is infinite, or a name is unknown.
    """
    rewards_S = np.asarray(rewards, dtype=np.float64)
    ids_S = np.asarray(group_ids)
    if rewards_S.shape != ids_S.shape or rewards_S.ndim != 1:
        raise ValueError(f"rewards {rewards_S.shape} and group_ids {ids_S.shape} must be 1-D and of one length")
    if np.isinf(rewards_S).any():
        raise ValueError(f"reward {int(np.flatnonzero(np.isinf(rewards_S))[0])} is infinite")
    if baseline not in BASELINES or scale_by not in SCALES:
        raise ValueError(f"baseline={baseline!r}, scale_by={scale_by!r}: choose of {BASELINES} and {SCALES}")
    advantages_S = np.zeros(len(rewards_S), dtype=np.float32)
    counted_S = ~np.isnan(rewards_S)
    if counted_S.any():
        advantages_S[counted_S] = _of_counted(rewards_S[counted_S], ids_S[counted_S], baseline, scale_by, eps)
    return advantages_S


def _of_counted(rewards_S: _Floats, ids_S: npt.NDArray[Any], baseline: str, scale_by: str, eps: float) -> _Floats:
    _, first_G, group_S, sizes_G = np.unique(ids_S, return_index=True, return_inverse=True, return_counts=True)
    # Shifting by one member first keeps equal rewards at exactly 0: a mean of equal numbers may round away from them.
    shifted_S = rewards_S - rewards_S[first_G][group_S]
    centred_S = shifted_S - (np.bincount(group_S, weights=shifted_S) / sizes_G)[group_S]
    batch_S = rewards_S - rewards_S[0]
    batch_S -= batch_S.mean()
    if baseline == "group_mean":
        advantages_S = centred_S
    elif baseline == "leave_one_out":
        # r - mean of the others = n / (n - 1) * (r - mean of all); alone there are no others and nothing is learnt.
        advantages_S = centred_S * (sizes_G / np.maximum(sizes_G - 1, 1))[group_S]
    else:
        advantages_S = batch_S if baseline == "batch_mean" else rewards_S
    if scale_by == "group_std":
        deviation_G = np.sqrt(np.bincount(group_S, weights=centred_S**2) / sizes_G)
        advantages_S = advantages_S / np.where(deviation_G > 0, deviation_G + eps, 1.0)[group_S]
    elif scale_by == "batch_std":
        deviation = np.sqrt(np.mean(batch_S**2))
        advantages_S = advantages_S / (deviation + eps if deviation > 0 else 1.0)
    return advantages_S
