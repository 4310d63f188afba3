"""Whether a complete group is trained, and the books of that.

    complete ──▶ verdict ──▶ ready ──▶ trained
    complete ──▶ early filter ──▶ ready ──▶ held while the reward models score it ──▶ verdict ──▶ trained

Without reward models the verdict falls when a group is complete. With them only the early filter is asked then, which
sees the rule rewards; the verdict falls once the trainer brings the scores. Until then no episode has had its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import RewardOutcome
from areal_x.rollout.episode import Episode
from areal_x.rollout.failure_budget import FailureBudget
from areal_x.rollout.finish_group import GroupFinisher
from areal_x.rollout.groups import AssembledGroup, PendingGroup
from areal_x.rollout.ledger import EpisodeLedger
from areal_x.rollout.ready import ReadyGroup
from areal_x.rollout.staleness import StalenessBudget

__all__ = ["GroupVerdicts"]


class GroupVerdicts:
    """Accepts and rejects groups; places under the bound, counts and records follow.

    Args:
        finisher: finishes a group and says if it is kept.
    """

    def __init__(
        self, finisher: GroupFinisher, ledger: EpisodeLedger, budget: StalenessBudget, failures: FailureBudget
    ) -> None:
        self._finisher = finisher
        self._ledger = ledger
        self._budget = budget
        self._failures = failures
        self._held: list[ReadyGroup] = []

    @property
    def num_held_episodes(self) -> int:
        """Episodes of groups that the trainer has taken and not yet brought back with their scores."""
        return sum(len(held.kept) for held in self._held)

    def on_complete(self, pending: PendingGroup) -> ReadyGroup | None:
        """The last episode of a group has ended; ``None`` when it is rejected.

        Raises:
            RewardError: a score failed and the policy is ``raise``, or post-processing went wrong.
            FailureBudgetError: too many groups were rejected in a row.
        """
        if self._finisher.waits_for_models:
            assembled, reason = self._finisher.finish_early(pending)
        else:
            assembled, reason = self._finisher.finish(pending)
        if assembled.group is None or reason is not None:
            self._budget.on_rejected()
            self._reject(assembled, reason)
            return None
        self._budget.on_accepted()
        kept = assembled.kept
        if self._finisher.waits_for_models:
            kept = [episode for episode in pending.episodes if episode.end is None]
        else:
            self._ledger.close_assembled(assembled)
            self._failures.on_group(True, self._ledger.counts.rejected)
        return ReadyGroup(pending.group_id, assembled.group, kept, pending)

    def hold(self, taken: Sequence[ReadyGroup]) -> list[TrajectoryGroup]:
        """The trainer takes groups to its reward models."""
        self._held += taken
        return [ready.group for ready in taken]

    def on_scored(self, outcomes: Iterable[RewardOutcome]) -> list[ReadyGroup]:
        """The verdicts on all groups that were held: their trajectories carry outcomes in which the scores are summed.

        Args:
            outcomes: of the reward models alone, to be counted.

        Returns:
            The accepted ones; each has its final group and the episodes that are trained.

        Raises:
            FailureBudgetError: a failed score or a rejected group was one too many.
            RewardError: as ``on_complete``.
        """
        self._ledger.account_scores(outcomes)
        accepted = []
        # All stay held until the last verdict: an error then leaves none of them without an end.
        for pending in [held.pending for held in self._held]:
            assembled, reason = self._finisher.finish(pending)
            if assembled.group is None or reason is not None:
                self._budget.on_taken_back()
                self._reject(assembled, reason)
                continue
            self._ledger.close_assembled(assembled)
            self._failures.on_group(True, self._ledger.counts.rejected)
            accepted.append(ReadyGroup(pending.group_id, assembled.group, assembled.kept, pending))
        self._held.clear()
        return accepted

    def give_up(self) -> list[Episode]:
        """The run is over: the episodes of all groups that are held."""
        held, self._held = self._held, []
        return [episode for ready in held for episode in ready.kept if episode.end is None]

    def _reject(self, assembled: AssembledGroup, reason: str | None) -> None:
        self._ledger.close_assembled(assembled)
        self._ledger.close_all(assembled.kept, "rejected", reason)
        self._failures.on_group(False, self._ledger.counts.rejected)
