"""Group-relative advantages (GRPO). Axis letters: S sequences, N tokens of all sequences laid end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from areal_x.api.records import FloatArray

__all__ = ["group_advantages", "spread_to_tokens"]


def group_advantages(
    rewards: npt.ArrayLike, group_ids: npt.ArrayLike, normalize_std: bool = True, eps: float = 1e-6
) -> FloatArray:
    """Reward minus the mean of its group, divided by the group's standard deviation when ``normalize_std``.

    Groups are found by id, so they may differ in size and lie in any order. A group of one sequence, or one whose
    rewards are all equal, gets exactly 0. A reward of NaN marks a masked sample: its advantage is 0, and the mean and
    the deviation of its group are those of the others.

    Args:
        rewards: finite scalars, or NaN, [S].
        group_ids: integers [S].
        normalize_std: divide by (population standard deviation + ``eps``), as in DeepSeekMath (GRPO).
        eps: keeps the division finite for nearly equal rewards.

    Returns:
        float32 [S].

    Raises:
        ValueError: the lengths differ, or a reward is infinite.
    """
    rewards_S = np.asarray(rewards, dtype=np.float64)
    ids_S = np.asarray(group_ids)
    if rewards_S.shape != ids_S.shape or rewards_S.ndim != 1:
        raise ValueError(f"rewards {rewards_S.shape} and group_ids {ids_S.shape} must be 1-D and of one length")
    if np.isinf(rewards_S).any():
        raise ValueError(f"reward {int(np.flatnonzero(np.isinf(rewards_S))[0])} is infinite")
    advantages_S = np.zeros(len(rewards_S), dtype=np.float32)
    counted_S = ~np.isnan(rewards_S)
    if counted_S.any():
        advantages_S[counted_S] = _of_counted(rewards_S[counted_S], ids_S[counted_S], normalize_std, eps)
    return advantages_S


def _of_counted(
    rewards_S: npt.NDArray[np.float64], ids_S: npt.NDArray[Any], normalize_std: bool, eps: float
) -> npt.NDArray[np.float64]:
    _, first_G, group_S, sizes_G = np.unique(ids_S, return_index=True, return_inverse=True, return_counts=True)
    # Shifting by one member first keeps equal rewards at exactly 0: a mean of equal numbers may round away from them.
    shifted_S = rewards_S - rewards_S[first_G][group_S]
    centred_S = shifted_S - (np.bincount(group_S, weights=shifted_S) / sizes_G)[group_S]
    if normalize_std:
        deviation_G = np.sqrt(np.bincount(group_S, weights=centred_S**2) / sizes_G)
        centred_S = centred_S / (deviation_G + eps)[group_S]
    return centred_S


def spread_to_tokens(values: npt.ArrayLike, lengths: npt.ArrayLike) -> FloatArray:
    """Repeat each sequence's value [S] over its tokens, float32 [N]."""
    return np.repeat(np.asarray(values, dtype=np.float32), np.asarray(lengths))
