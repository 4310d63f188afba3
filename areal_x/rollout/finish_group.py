"""What happens to a group when its last episode has ended: group rewards, failed scores, post-processing, filter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import RewardOutcome
from areal_x.rollout.episode import Episode
from areal_x.rollout.groups import AssembledGroup, FailurePolicy, PendingGroup, assemble_group, count_trainable

__all__ = ["GroupFilter", "GroupFinisher", "GroupHooks", "ScoreGroup", "is_waiting", "pending_outcomes"]

GroupFilter = Callable[[TrajectoryGroup], bool | str]
ScoreGroup = Callable[[Sequence[RewardOutcome]], Awaitable[list[RewardOutcome]]]
"""The final outcomes of those that are ``pending``, in the same order."""


@dataclass(frozen=True, slots=True)
class GroupHooks:
    """What is done to a complete group, in this order.

    ``score_group`` scores its samples together, where the reward is one of whole groups. ``early_filter`` sees the rule
    rewards; reward models score what it keeps, in the trainer, where ``waits_for_models`` says that there are some.
    ``post_process`` changes the rewards of a group that is large enough. A filter gives true to keep a group, false or
    a reason to reject it.
    """

    score_group: ScoreGroup | None = None
    post_process: Callable[[TrajectoryGroup], None] | None = None
    group_filter: GroupFilter | None = None
    early_filter: GroupFilter | None = None
    waits_for_models: bool = False


class GroupFinisher:
    """Finishes complete groups.

    Args:
        policy: what a failed score means.
        min_samples: a group with fewer good samples is rejected.
        hooks: what is done to a complete group.
        timeout_seconds: scoring a group may take this long; then its samples have the outcome ``timeout``.
        on_scored: called with a group whose samples were scored together, and the task that gave their outcomes.
    """

    def __init__(
        self,
        policy: FailurePolicy,
        min_samples: int,
        hooks: GroupHooks,
        timeout_seconds: float,
        on_scored: Callable[[PendingGroup, asyncio.Task[list[RewardOutcome]]], None],
    ) -> None:
        self._policy = policy
        self._min_samples = min_samples
        self._hooks = hooks
        self._timeout_seconds = timeout_seconds
        self._on_scored = on_scored
        self.waits_for_models = hooks.waits_for_models
        self.tasks: set[asyncio.Task[list[RewardOutcome]]] = set()

    def start_scoring(self, pending: PendingGroup) -> bool:
        """Begin to score the samples that wait for one another; false when there are none, or too few to be trained."""
        waiting = pending_outcomes(pending)
        if not waiting or count_trainable(pending, self._policy) < self._min_samples:
            return False
        task = asyncio.get_running_loop().create_task(self._score(pending, waiting), name="score a group")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda done: self._on_scored(pending, done))
        return True

    async def _score(self, pending: PendingGroup, waiting: list[RewardOutcome]) -> list[RewardOutcome]:
        score = self._hooks.score_group
        if score is None:
            raise RuntimeError("the reward scores whole groups, but this executor was given no score_group")
        deadline = asyncio.timeout(self._timeout_seconds)
        try:
            async with deadline:
                scored = await score(waiting)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("what scores a group cancelled itself") from error
        except TimeoutError:
            if not deadline.expired():
                raise
            seconds = self._timeout_seconds
            text = f"scoring a group took too long; see rollout.episode_timeout_seconds={seconds:g}"
            scored = [RewardOutcome("timeout", seconds=seconds, error=text) for _ in waiting]
        finals = {id(outcome): final for outcome, final in zip(waiting, scored, strict=True)}
        for episode in pending.episodes:
            for trajectory in episode.trajectories or ():
                trajectory.outcome = finals.get(id(trajectory.outcome), trajectory.outcome)
        return scored

    def finish_early(self, pending: PendingGroup) -> tuple[AssembledGroup, str | None]:
        """As ``finish``, before reward models have scored: failure policy and early filter alone.

        Raises:
            RewardError: as ``finish``.
        """
        assembled = assemble_group(pending, self._policy, self._min_samples)
        if assembled.group is None:
            return assembled, "group_too_small"
        return assembled, _rejection(self._hooks.early_filter, assembled.group, "early_filter")

    def finish(self, pending: PendingGroup) -> tuple[AssembledGroup, str | None]:
        """Apply the failure policy, post-process and filter; also says why the group is rejected (None: it is not).

        Raises:
            RewardError: a score failed and the policy is ``raise``, or post-processing went wrong.
        """
        assembled = assemble_group(pending, self._policy, self._min_samples)
        if assembled.group is None:
            return assembled, "group_too_small"
        if self._hooks.post_process is not None:
            self._hooks.post_process(assembled.group)
        return assembled, _rejection(self._hooks.group_filter, assembled.group, "filter")


def _rejection(group_filter: GroupFilter | None, group: TrajectoryGroup, name: str) -> str | None:
    """Why a filter rejects a group; ``None``: it does not."""
    verdict = group_filter is None or group_filter(group)
    if isinstance(verdict, str):
        return verdict or name
    return None if verdict else name


def is_waiting(episode: Episode) -> bool:
    """Whether an episode that ended waits for the rest of its group to be scored."""
    for trajectory in episode.trajectories or ():
        if trajectory.outcome is not None and trajectory.outcome.status == "pending":
            return True
    return False


def pending_outcomes(pending: PendingGroup) -> list[RewardOutcome]:
    """Each outcome that waits for the group, once, in the order of the episodes."""
    found: dict[int, RewardOutcome] = {}
    for episode in pending.episodes:
        for trajectory in episode.trajectories or ():
            outcome = trajectory.outcome
            if outcome is not None and outcome.status == "pending":
                found[id(outcome)] = outcome
    return list(found.values())
