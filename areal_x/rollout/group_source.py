"""What the trainer takes from an executor: groups, the oldest first, with the tokens masked that are too old."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import RewardOutcome
from areal_x.rollout.failure_budget import FailureBudget
from areal_x.rollout.finish_group import GroupFinisher
from areal_x.rollout.ledger import EpisodeLedger
from areal_x.rollout.parts import ReadyLimit
from areal_x.rollout.ready import ReadyGroup, ReadyGroups
from areal_x.rollout.redraws import Redraws
from areal_x.rollout.staleness import OverAgeCounts, StalenessBudget, mask_over_age
from areal_x.rollout.verdicts import GroupVerdicts, VerdictCounts

__all__ = ["GroupSource"]


class GroupSource(ABC):
    """The consumption half of ``RolloutExecutor``; the other half fills ``_ready``.

    Without reward models the trainer calls ``next_groups``. With them it takes ``next_candidates``, scores them, and
    gets the groups that are left from ``settle_candidates``; the places of the others are free for further groups.

    Rejected groups whose redraws are used up leave holes (``Redraws``), which are waited for and taken like groups: a
    call then gives fewer groups than places, and ``redraws.num_holes`` grows by the difference.
    """

    def __init__(
        self,
        budget: StalenessBudget,
        failures: FailureBudget,
        ledger: EpisodeLedger,
        finisher: GroupFinisher,
        ready_limit: ReadyLimit,
        redraws: Redraws,
    ) -> None:
        self.budget = budget
        self._failures = failures
        self._ledger = ledger
        self.redraws = redraws
        self._verdicts = GroupVerdicts(finisher, ledger, budget, failures, redraws)
        self._ready_limit = ready_limit
        self._ready, self._over_age = ReadyGroups(self._nothing_comes), OverAgeCounts()
        self._next_group_id = 0

    async def next_batch(self, version: int | None = None) -> list[TrajectoryGroup]:
        """The groups of one whole train step, the oldest that are ready, by their ids. See ``next_groups``."""
        num_groups = self.budget.groups_per_step
        return await self.next_groups(num_groups, num_groups, version)

    async def next_groups(self, at_most: int, at_least: int = 1, version: int | None = None) -> list[TrajectoryGroup]:
        """Wait for ``at_least`` ready places and take the oldest, ``at_most`` so many; the groups that they hold.

        Tokens too old for a train step on weights ``version`` (default: those published last) are masked;
        ``take_over_age`` tells how many. A trainer that accumulates gradients can take the parts of one step as they
        come: samples that finish while the step is under way then still join it, and fewer of their tokens are too
        old.

        Raises:
            DataError: the items ended and so many groups will never be ready.
            Exception: what ended the run.
        """
        if not 1 <= at_least <= at_most:
            raise ValueError(f"cannot take at least {at_least} and at most {at_most} groups")
        await self._wait_for(at_least)
        return self._train(*self._ready.take(at_most), version)

    async def next_candidates(self, num_groups: int) -> list[TrajectoryGroup]:
        """Wait for ``num_groups`` places and take the oldest; their groups are for reward models to score, and then for
        ``settle_candidates``.

        Raises:
            DataError, Exception: as ``next_groups``.
        """
        await self._wait_for(num_groups)
        taken, num_holes = self._ready.take(num_groups)
        self.redraws.on_taken(0, num_holes)
        return self._verdicts.hold(taken)

    def settle_candidates(self, outcomes: Iterable[RewardOutcome], version: int | None = None) -> list[TrajectoryGroup]:
        """The groups taken by ``next_candidates`` that post-processing and filter keep, masked as by ``next_groups``.

        Args:
            outcomes: each score of each reward model, to be counted; the sums are the outcomes of the trajectories.

        Raises:
            FailureBudgetError, RewardError: as ``run``.
        """
        return self._train(*self._verdicts.on_scored(outcomes), version)

    async def remaining_groups(self, version: int | None = None) -> list[TrajectoryGroup]:
        """Wait until the items have ended and every episode has run, and take all groups; raises what ended the run."""
        await self._ready.wait(1 << 62, self._schedule_tick)
        self._raise_if_ended()
        return self._train(*self._ready.take(len(self._ready)), version)

    def take_over_age(self) -> OverAgeCounts:
        """What masking did to the groups taken since the last call."""
        counts, self._over_age = self._over_age, OverAgeCounts()
        return counts

    def take_verdicts(self) -> VerdictCounts:
        """Groups accepted and rejected since the last call."""
        return self._verdicts.take_counts()

    async def _wait_for(self, num_groups: int) -> None:
        self._ready_limit.on_asked(len(self._ready) < num_groups)
        await self._ready.wait(num_groups, self._schedule_tick)
        self._raise_if_ended()
        if len(self._ready) < num_groups:
            raise self._ready.too_few(num_groups, self._next_group_id, self._failures.first_failure)

    def _train(self, taken: Sequence[ReadyGroup], num_holes: int, version: int | None) -> list[TrajectoryGroup]:
        """Hand over what will be trained on weights ``version`` (default: those published last)."""
        self.redraws.on_taken(len(taken), num_holes)
        self._ledger.close_all((episode for ready in taken for episode in ready.kept), "trained")
        groups = [ready.group for ready in taken]
        step_version = self.budget.version if version is None else version
        self._over_age.add(mask_over_age(groups, step_version, self.budget.max_staleness))
        self.check_conservation()
        self._schedule_tick()
        return groups

    @abstractmethod
    def check_conservation(self) -> None:
        """Compare the books with the episodes that are there; raises ``AssertionError`` when one was lost."""

    @abstractmethod
    def _schedule_tick(self) -> None:
        """Look soon whether something can be admitted."""

    @abstractmethod
    def _nothing_comes(self) -> bool:
        """Whether no further group will ever be ready."""

    @abstractmethod
    def _raise_if_ended(self) -> None:
        """Raise what ended the run."""
