"""From finished episodes to a group that can be trained: failed scores, and groups that became too small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from areal_x.api.errors import ConfigError
from areal_x.api.records import Trajectory, TrajectoryGroup
from areal_x.api.reward_api import RewardError, RewardOutcome
from areal_x.rollout.episode import Episode

__all__ = ["AssembledGroup", "FailurePolicy", "PendingGroup", "assemble_group", "check_trajectories", "count_trainable"]


@dataclass(slots=True)
class PendingGroup:
    """The episodes of one item. ``num_open`` of them still run; ``num_waiting`` are to be scored with their group."""

    group_id: int
    item: dict[str, Any]
    admitted_version: int
    num_open: int
    episodes: list[Episode] = field(default_factory=list)
    num_waiting: int = 0

    def free_places(self, waits: bool) -> int:
        """Places that an episode which ended gives back now: none if it ``waits`` for its group to be scored."""
        self.num_waiting += waits
        return not waits


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What ``reward.on_failure`` says: ``drop``, ``mask``, ``raise``, or a number that stands for a failed score."""

    mode: str
    value: float | None = None

    @classmethod
    def parse(cls, on_failure: str | float) -> FailurePolicy:
        """Read the configuration's value.

        Raises:
            ConfigError: it is none of the four.
        """
        if on_failure in ("drop", "mask", "raise"):
            return cls(str(on_failure))
        try:
            value = float(on_failure)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise ConfigError(f"reward.on_failure is {on_failure!r}; use drop, mask, raise or a finite number")
        return cls("number", value)


@dataclass(slots=True)
class AssembledGroup:
    """What became of a complete group.

    ``group`` is None when too few samples are left. ``kept`` are the episodes that go to the train step; ``failed`` and
    ``rejected`` are (episode, reason) of those that do not, which includes the masked ones: they are in the group but
    nothing of them is trained.
    """

    group: TrajectoryGroup | None
    kept: list[Episode]
    failed: list[tuple[Episode, str]]
    rejected: list[tuple[Episode, str]]


def check_trajectories(result: Any) -> list[Trajectory]:
    """What a workflow returned, as a list, with a reward outcome on each trajectory.

    Raises:
        TypeError: it is neither a trajectory nor a list of them, or no outcome is attached.
    """
    if type(result) is Trajectory and result.outcome is not None:
        return [result]
    trajectories = [result] if isinstance(result, Trajectory) else result
    if (
        not isinstance(trajectories, list)
        or not trajectories
        or not all(isinstance(trajectory, Trajectory) for trajectory in trajectories)
    ):
        raise TypeError(
            f"a workflow returned {type(result).__name__}; return a Trajectory, a list of them, or None to reject"
        )
    outcome = trajectories[-1].outcome
    if outcome is None:
        raise TypeError(
            "a workflow returned a trajectory without an outcome; pass outcome=await reward_fn.outcome(...)"
        )
    for trajectory in trajectories:
        if trajectory.outcome is None:
            trajectory.outcome = outcome
    return trajectories


def assemble_group(pending: PendingGroup, policy: FailurePolicy, min_samples: int) -> AssembledGroup:
    """Apply ``policy`` to the failed scores of a complete group. Episodes that failed or were rejected before are not
    in it.

    A masked sample has the reward NaN: a number in its place would move the baseline or shrink the deviation.

    Raises:
        RewardError: a score failed and the policy is ``raise``.
    """
    good: list[Episode] = []
    failed: list[tuple[Episode, str]] = []
    rejected: list[tuple[Episode, str]] = []
    masked: list[Episode] = []
    for episode in pending.episodes:
        if episode.trajectories is None:
            continue
        outcome = _worst_outcome(episode.trajectories)
        if _is_trainable(outcome, policy):
            good.append(episode)
        elif outcome.status == "not_applicable":
            rejected.append((episode, "reward_not_applicable"))
        elif policy.mode == "raise":
            raise RewardError(f"the score of episode {episode.episode_id} failed ({outcome.status}): {outcome.error}")
        else:
            failed.append((episode, f"reward_{outcome.status}"))
            if policy.mode == "mask":
                masked.append(episode)
    if len(good) < min_samples:
        rejected.extend((episode, "group_too_small") for episode in good)
        return AssembledGroup(None, [], failed, rejected)
    return AssembledGroup(_make_group(pending, good, masked, policy), good, failed, rejected)


def count_trainable(pending: PendingGroup, policy: FailurePolicy) -> int:
    """Samples of a complete group that have a reward, or still may get one from a reward of whole groups."""
    outcomes = [_worst_outcome(episode.trajectories) for episode in pending.episodes if episode.trajectories]
    return sum(_is_trainable(outcome, policy) for outcome in outcomes)


def _is_trainable(outcome: RewardOutcome, policy: FailurePolicy) -> bool:
    return outcome.status in ("ok", "pending") or (outcome.status != "not_applicable" and policy.mode == "number")


def _worst_outcome(trajectories: list[Trajectory]) -> RewardOutcome:
    """The first that is not ``ok``, else the last."""
    worst: RewardOutcome | None = None
    for trajectory in trajectories:
        worst = trajectory.outcome or worst
        if worst is not None and worst.status != "ok":
            break
    assert worst is not None
    return worst


def _make_group(
    pending: PendingGroup, good: list[Episode], masked: list[Episode], policy: FailurePolicy
) -> TrajectoryGroup:
    trajectories: list[Trajectory] = []
    rewards: list[float] = []
    group_id = pending.group_id
    for episode in good:
        episode_id = episode.episode_id
        for trajectory in episode.trajectories or ():
            trajectory.group_id, trajectory.episode_id = group_id, episode_id
            trajectories.append(trajectory)
            rewards.append(_reward_of(trajectory, policy))
    for episode in masked:
        episode_id = episode.episode_id
        for trajectory in episode.trajectories or ():
            trajectory.group_id, trajectory.episode_id = group_id, episode_id
            trajectory.loss_mask[:] = False
            trajectories.append(trajectory)
            rewards.append(float("nan"))
    return TrajectoryGroup(
        group_id=pending.group_id,
        trajectories=trajectories,
        rewards=np.asarray(rewards, dtype=np.float32),
        item=pending.item,
        item_index=pending.group_id,
        admitted_version=pending.admitted_version,
    )


def _reward_of(trajectory: Trajectory, policy: FailurePolicy) -> float:
    outcome = trajectory.outcome
    if outcome is not None and outcome.status == "ok" and outcome.value is not None:
        return outcome.value
    assert policy.value is not None
    return policy.value
