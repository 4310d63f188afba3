"""Filters of complete groups: what is not worth a training step is not trained, and why is counted.

A filter is a function of a group that returns true to keep it, false or a reason to reject it. Built-in ones are named
in ``rollout.filter``; any other name there is a function of the user's. ``rollout.filter_kwargs`` are bound to either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from areal_x.api.bound_functions import bound_function
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import DEFAULT_REWARD_KEY
from areal_x.rollout.finish_group import GroupFilter

__all__ = ["BUILT_IN_FILTERS", "NO_VALUE", "SAME_REWARD", "TOO_HIGH", "TOO_LOW", "load_group_filter"]

SAME_REWARD = "same_reward"
"""Why ``nonzero_variance`` rejects."""
TOO_HIGH, TOO_LOW = "reward_too_high", "reward_too_low"
"""Why ``reward_range`` rejects."""
NO_VALUE = "no_value"
"""Why both reject a group none of whose samples has the part of the reward that is looked at."""


def nonzero_variance(group: TrajectoryGroup, *, key: str | None = None) -> bool | str:
    """Keep a group whose samples differ in their reward: else every advantage is 0 and nothing is learnt (dynamic
    sampling of DAPO, https://arxiv.org/abs/2503.14476, equation 11).

    Args:
        key: compare this part of the reward (``accuracy``, or a reward's name where there are several), or
            ``reward``, the reward before post-processing: a penalty for length makes samples differ that are all wrong.
            Default: the reward that is trained.
    """
    values = _values(group, key)
    if not len(values):
        return NO_VALUE
    return True if values.min() < values.max() else SAME_REWARD


def reward_range(
    group: TrajectoryGroup,
    *,
    low: float | None = None,
    high: float | None = None,
    inclusive: bool = False,
    key: str | None = None,
) -> bool | str:
    """Keep a group whose mean reward lies above ``low`` and below ``high``: neither too hard nor too easy.

    Args:
        low, high: either may be left out. A mean equal to one of them is rejected, or with ``inclusive`` kept.
        key: as of ``nonzero_variance``.
    """
    values = _values(group, key)
    if not len(values):
        return NO_VALUE
    mean = float(values.mean())
    if low is not None and (mean < low or (mean == low and not inclusive)):
        return TOO_LOW
    if high is not None and (mean > high or (mean == high and not inclusive)):
        return TOO_HIGH
    return True


BUILT_IN_FILTERS: dict[str, Callable[..., bool | str]] = {
    "nonzero_variance": nonzero_variance,
    "reward_range": reward_range,
}
"""Filters by the names that ``rollout.filter`` knows them by."""


def load_group_filter(name: str, kwargs: Mapping[str, Any], key: str) -> GroupFilter:
    """The filter that the configuration's ``key`` names, with ``kwargs`` bound.

    Raises:
        ConfigError: there is none of that name, it is no function, or it does not take the arguments.
    """
    return bound_function(key, name, BUILT_IN_FILTERS, kwargs)


def _values(group: TrajectoryGroup, key: str | None) -> npt.NDArray[np.float64]:
    """What a filter looks at, of the samples that have it; masked ones (NaN) have none."""
    is_scored = ~np.isnan(group.rewards)
    if key is None:
        return group.rewards[is_scored].astype(np.float64)
    if key == DEFAULT_REWARD_KEY:
        raw = group.rewards if group.raw_rewards is None else group.raw_rewards
        return raw[is_scored].astype(np.float64)
    outcomes = [t.outcome for t, scored in zip(group.trajectories, is_scored, strict=True) if scored and t.outcome]
    values = [outcome.values.get(key, outcome.parts.get(key, np.nan)) for outcome in outcomes]
    numbers = np.array(values, dtype=np.float64)
    return numbers[~np.isnan(numbers)]
