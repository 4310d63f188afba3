"""Whether a complete group is trained, and the books of that.

    complete ──▶ verdict ──▶ ready ──▶ trained
    complete ──▶ early filter ──▶ ready ──▶ held while the reward models score it ──▶ verdict ──▶ trained

Without reward models the verdict falls when a group is complete. With them only the early filter is asked then, which
sees the rule rewards; the verdict falls once the trainer brings the scores. Until then no episode has had its end.

A rejected group gives its place back, for another group to be drawn; once the step's redraws are used up (``Redraws``),
it keeps its place and leaves a hole in the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import RewardOutcome
from areal_x.rollout.episode import Episode
from areal_x.rollout.failure_budget import FailureBudget
from areal_x.rollout.finish_group import GroupFinisher
from areal_x.rollout.groups import AssembledGroup, PendingGroup
from areal_x.rollout.ledger import EpisodeLedger
from areal_x.rollout.ready import ReadyGroup
from areal_x.rollout.redraws import Redraws
from areal_x.rollout.staleness import StalenessBudget

__all__ = ["GroupVerdicts", "VerdictCounts"]


@dataclass(slots=True)
class VerdictCounts:
    """Groups by their verdict; ``rejected`` by reason, ``num_redraws`` of them with another group drawn in place."""

    num_accepted: int = 0
    num_redraws: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def rejected_shares(self) -> dict[str, float]:
        """Of all groups, the share that was rejected for each reason."""
        total = self.num_accepted + self.rejected.total()
        return {reason: count / total for reason, count in sorted(self.rejected.items())}


class GroupVerdicts:
    """Accepts and rejects groups; places under the bound, counts and records follow.

    Args:
        finisher: finishes a group and says if it is kept.
        redraws: says whether another group is drawn for a rejected one.
    """

    def __init__(
        self,
        finisher: GroupFinisher,
        ledger: EpisodeLedger,
        budget: StalenessBudget,
        failures: FailureBudget,
        redraws: Redraws,
    ) -> None:
        self._finisher = finisher
        self._ledger = ledger
        self._budget = budget
        self._failures = failures
        self._redraws = redraws
        self._held: list[ReadyGroup] = []
        self._counts = VerdictCounts()

    @property
    def num_held_episodes(self) -> int:
        """Episodes of groups that the trainer has taken and not yet brought back with their scores."""
        return sum(len(held.kept) for held in self._held)

    def on_complete(self, pending: PendingGroup) -> ReadyGroup | bool:
        """The last episode of a group has ended. When it is rejected: whether it leaves a hole.

        Raises:
            RewardError: a score failed and the policy is ``raise``, or post-processing went wrong.
            FailureBudgetError: too many groups were rejected in a row.
        """
        if self._finisher.waits_for_models:
            assembled, reason = self._finisher.finish_early(pending)
        else:
            assembled, reason = self._finisher.finish(pending)
        if assembled.group is None or reason is not None:
            is_redrawn = self._may_redraw()
            if is_redrawn:
                self._budget.on_rejected()
            else:
                self._budget.on_accepted()
            self._reject(pending, assembled, reason)
            return not is_redrawn
        self._budget.on_accepted()
        kept = assembled.kept
        if self._finisher.waits_for_models:
            kept = [episode for episode in pending.episodes if episode.end is None]
        else:
            self._accept(assembled)
        return ReadyGroup(pending.group_id, assembled.group, kept, pending)

    def hold(self, taken: Sequence[ReadyGroup]) -> list[TrajectoryGroup]:
        """The trainer takes groups to its reward models."""
        self._held += taken
        return [ready.group for ready in taken]

    def on_scored(self, outcomes: Iterable[RewardOutcome]) -> tuple[list[ReadyGroup], int]:
        """The verdicts on all groups that were held: their trajectories carry outcomes in which the scores are summed.

        Args:
            outcomes: of the reward models alone, to be counted.

        Returns:
            The accepted ones; each has its final group and the episodes that are trained. And how many of the others
            leave a hole.

        Raises:
            FailureBudgetError: a failed score or a rejected group was one too many.
            RewardError: as ``on_complete``.
        """
        self._ledger.account_scores(outcomes)
        accepted = []
        num_holes = 0
        # All stay held until the last verdict: an error then leaves none of them without an end.
        for pending in [held.pending for held in self._held]:
            assembled, reason = self._finisher.finish(pending)
            if assembled.group is None or reason is not None:
                if self._may_redraw():
                    self._budget.on_taken_back()
                else:
                    num_holes += 1
                self._reject(pending, assembled, reason)
                continue
            self._accept(assembled)
            accepted.append(ReadyGroup(pending.group_id, assembled.group, assembled.kept, pending))
        self._held.clear()
        return accepted, num_holes

    def take_counts(self) -> VerdictCounts:
        """The verdicts since the last call."""
        counts, self._counts = self._counts, VerdictCounts()
        return counts

    def give_up(self) -> list[Episode]:
        """The run is over: the episodes of all groups that are held."""
        held, self._held = self._held, []
        return [episode for ready in held for episode in ready.kept if episode.end is None]

    def _may_redraw(self) -> bool:
        is_redrawn = self._redraws.may_redraw()
        self._counts.num_redraws += is_redrawn
        return is_redrawn

    def _accept(self, assembled: AssembledGroup) -> None:
        self._counts.num_accepted += 1
        self._ledger.close_assembled(assembled)
        self._failures.on_group(True, self._ledger.counts.rejected)

    def _reject(self, pending: PendingGroup, assembled: AssembledGroup, reason: str | None) -> None:
        self._counts.rejected[reason or "rejected"] += 1
        self._ledger.reject_group(pending, assembled, reason)
        self._failures.on_group(False, self._ledger.counts.rejected)
