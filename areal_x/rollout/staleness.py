"""The staleness bound: how much may be in flight, and which tokens are too old to train.

Two rules that hold together:

1. **Admission** (``StalenessBudget``). With G groups to a step, bound ``eta`` and ``version`` publications so far, a
   group may start while ``accepted + running < (eta + version + 1) * G``. Rejected and failed groups give their place
   back, but for those that leave a hole (``Redraws``): they count as accepted, and as trained with their step.
2. **Consumption** (``mask_over_age``). A train step on weights ``v`` trains no token of a version below ``v - eta``.

Why the bound holds. Rule 2 alone proves that no trained token is older than ``eta``: the engine stamps every token
with the weights that sampled it, ``v`` is the version of the weights that the step runs on, and each group passes
rule 2 on its way into that step. It needs no assumption on how long a sample takes.

What rule 1 adds: it keeps rule 2 from having much to do. A place is charged when a group starts and is freed only
when new weights are live, because ``version`` moves in ``on_published`` and nowhere else. After ``v`` publications
``v * G`` groups were trained, so at most ``(eta + 1) * G`` are running, ready or in the step under way. A group
admitted at version ``a`` is number ``(eta + a + 1) * G`` at the latest, so if groups were trained in the order of
their admission it would be in step ``a + eta`` or before: lag ``eta`` at most. A group that takes longer than its
neighbours is overtaken, and only its oldest tokens are lost.

``eta = 0`` is exactly synchronous: after ``v`` publications ``v * G`` groups are trained and ``(v + 1) * G``
admitted, so the only groups that can start are those of the step on weights ``v``, and all of their tokens are
sampled by weights ``v``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from areal_x.api.errors import ConfigError
from areal_x.api.records import Trajectory, TrajectoryGroup

__all__ = ["OverAgeCounts", "StalenessBudget", "mask_over_age"]


class StalenessBudget:
    """The admission rule as a state machine: observations in, the number of admissible groups out.

    Args:
        groups_per_step: groups of one train step.
        group_size: episodes of one group.
        max_staleness: the bound ``eta``; ``None`` admits without limit (evaluation).
        max_concurrent: episodes that may run at once, at most; ``None`` for no further limit.
        version: publications before this run.
    """

    def __init__(
        self,
        groups_per_step: int,
        group_size: int = 1,
        max_staleness: int | None = 0,
        max_concurrent: int | None = None,
        version: int = 0,
    ) -> None:
        if groups_per_step < 1 or group_size < 1:
            raise ConfigError(f"{groups_per_step} groups of {group_size} make no step; both must be at least 1")
        if max_staleness is not None and max_staleness < 0:
            raise ConfigError(f"rollout.max_staleness is {max_staleness}; use 0 (synchronous) or a positive bound")
        if max_concurrent is not None and max_concurrent < group_size:
            raise ConfigError(
                f"rollout.max_concurrent is {max_concurrent}; one group needs {group_size} (rollout.group_size)"
            )
        self.groups_per_step = groups_per_step
        self.group_size = group_size
        self.max_staleness = max_staleness
        self.max_concurrent = max_concurrent
        self.version = version
        self.num_running_groups = 0
        self.num_running_episodes = 0
        self.num_accepted_groups = version * groups_per_step
        """Groups that are ready or trained, those of the publications before this run included."""

    def go_on_from(self, num_accepted_groups: int, num_running_groups: int, num_running_episodes: int) -> None:
        """Take over the groups of an earlier run, which were admitted under the bound of an earlier version."""
        self.num_accepted_groups = num_accepted_groups
        self.num_running_groups = num_running_groups
        self.num_running_episodes = num_running_episodes

    @property
    def num_admissible(self) -> int:
        """Groups that may start now."""
        room = 1 << 62
        if self.max_staleness is not None:
            bound = (self.max_staleness + self.version + 1) * self.groups_per_step
            room = bound - self.num_accepted_groups - self.num_running_groups
        if self.max_concurrent is not None:
            room = min(room, (self.max_concurrent - self.num_running_episodes) // self.group_size)
        return max(room, 0)

    def admit(self) -> None:
        """Charge the place of one group, whose episodes start."""
        if self.num_admissible < 1:
            raise RuntimeError("a group was admitted beyond the staleness bound")
        self.num_running_groups += 1
        self.num_running_episodes += self.group_size

    def on_episodes_ended(self, count: int = 1) -> None:
        """So many episodes run no longer, however they ended."""
        self.num_running_episodes -= count

    def on_accepted(self) -> None:
        """A running group is complete and keeps its place: it will be trained, or leaves a hole."""
        self.num_running_groups -= 1
        self.num_accepted_groups += 1

    def on_rejected(self) -> None:
        """A running group will not be trained; its place is free again."""
        self.num_running_groups -= 1

    def on_taken_back(self) -> None:
        """A group that was accepted will not be trained after all; its place is free again."""
        self.num_accepted_groups -= 1

    def on_published(self, version: int) -> None:
        """Weights of ``version`` are live in the engine."""
        if version < self.version:
            raise ValueError(f"version {version} was published after version {self.version}; versions only grow")
        self.version = version


@dataclass(slots=True)
class OverAgeCounts:
    """What ``mask_over_age`` did. ``lags`` counts the trained tokens of each lag (in versions)."""

    num_trained_tokens: int = 0
    num_masked_tokens: int = 0
    num_samples: int = 0
    num_wholly_masked_samples: int = 0
    lags: Counter[int] = field(default_factory=Counter)

    def add(self, other: OverAgeCounts) -> None:
        """Add the counts of another part of the same step or run."""
        self.num_trained_tokens += other.num_trained_tokens
        self.num_masked_tokens += other.num_masked_tokens
        self.num_samples += other.num_samples
        self.num_wholly_masked_samples += other.num_wholly_masked_samples
        self.lags.update(other.lags)

    @property
    def masked_share(self) -> float:
        """Masked tokens over all sampled ones."""
        return self.num_masked_tokens / max(self.num_masked_tokens + self.num_trained_tokens, 1)

    @property
    def mean_lag(self) -> float:
        """Mean lag of the trained tokens."""
        return sum(lag * count for lag, count in self.lags.items()) / max(self.num_trained_tokens, 1)


def mask_over_age(groups: Iterable[TrajectoryGroup], version: int, max_staleness: int | None) -> OverAgeCounts:
    """Take every token sampled by weights older than ``version - max_staleness`` out of the loss mask, in place.

    The work is one numpy operation for each version span, never for each token.
    """
    counts = OverAgeCounts()
    oldest = None if max_staleness is None else version - max_staleness
    for group in groups:
        for trajectory in group.trajectories:
            _mask_trajectory(trajectory, version, oldest, counts)
    return counts


def _mask_trajectory(trajectory: Trajectory, version: int, oldest: int | None, counts: OverAgeCounts) -> None:
    mask = trajectory.loss_mask
    trained = masked = 0
    for start, end, sampled_by in trajectory.version_spans:
        num_tokens = int(np.count_nonzero(mask[start:end]))
        if num_tokens == 0:
            continue
        if oldest is not None and sampled_by < oldest:
            mask[start:end] = False
            masked += num_tokens
        else:
            trained += num_tokens
            counts.lags[version - sampled_by] += num_tokens
    counts.num_samples += 1
    counts.num_trained_tokens += trained
    counts.num_masked_tokens += masked
    if masked and not trained:
        counts.num_wholly_masked_samples += 1
