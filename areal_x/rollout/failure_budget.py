"""How many failures a run survives before it stops with the first traceback, and how long it may train nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from areal_x.api.errors import FailureBudgetError

__all__ = ["FailureBudget"]


class FailureBudget:
    """Counts failed episodes in a row, and failed scores in a sliding window.

    Args:
        max_failures_in_a_row: so many failed episodes, with none that succeeds between them, stop the run.
        max_failure_rate: more than this share of the last ``failure_window`` scores stops the run. Before the window is
            full the missing scores count as good ones, so a bad start alone never stops a run too early.
        failure_window: length of that window, in scores.
        max_rejected_in_a_row: so many groups rejected, with none accepted between them, stop the run: a trainer that
            waits for a batch which no item can fill would wait for ever.
    """

    def __init__(
        self,
        max_failures_in_a_row: int,
        max_failure_rate: float,
        failure_window: int,
        max_rejected_in_a_row: int = 1024,
    ) -> None:
        self.max_rejected_in_a_row = max_rejected_in_a_row
        self.num_rejected_in_a_row = 0
        self.max_failures_in_a_row = max_failures_in_a_row
        self.max_failed_scores = max_failure_rate * failure_window
        self.failure_window = failure_window
        self.first_failure: str | None = None
        self.num_in_a_row = 0
        self._scores: deque[bool] = deque()
        self._num_failed_scores = 0

    def on_episode(self, failure: str | None) -> None:
        """An episode ended; ``failure`` is its traceback or reason, ``None`` when it did not fail.

        Raises:
            FailureBudgetError: too many failed in a row.
        """
        if failure is None:
            self.num_in_a_row = 0
            return
        self._keep_first(failure)
        self.num_in_a_row += 1
        if self.num_in_a_row >= self.max_failures_in_a_row:
            raise FailureBudgetError(
                f"{self.num_in_a_row} episodes failed in a row (rollout.max_failures_in_a_row="
                f"{self.max_failures_in_a_row}); the first failure was:\n{self.first_failure}"
            )

    def on_score(self, failure: str | None) -> None:
        """A score is there; ``failure`` is its traceback or reason, ``None`` when it is a score.

        Raises:
            FailureBudgetError: too large a share of the last scores failed.
        """
        failed = failure is not None
        self._scores.append(failed)
        self._num_failed_scores += failed
        if len(self._scores) > self.failure_window:
            self._num_failed_scores -= self._scores.popleft()
        if failure is None:
            return
        self._keep_first(failure)
        if self._num_failed_scores > self.max_failed_scores:
            raise FailureBudgetError(
                f"{self._num_failed_scores} of the last {self.failure_window} scores failed (reward.max_failure_rate="
                f"{self.max_failed_scores / self.failure_window:g}); the first failure was:\n{self.first_failure}"
            )

    def on_group(self, is_accepted: bool, reasons: Mapping[str, int]) -> None:
        """A group was accepted or rejected; ``reasons`` counts all rejected episodes by reason.

        Raises:
            FailureBudgetError: too many were rejected in a row.
        """
        self.num_rejected_in_a_row = 0 if is_accepted else self.num_rejected_in_a_row + 1
        if self.num_rejected_in_a_row >= self.max_rejected_in_a_row:
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
            failure = f"; the first failure was:\n{self.first_failure}" if self.first_failure else ""
            raise FailureBudgetError(
                f"{self.num_rejected_in_a_row} groups in a row were rejected, so no batch can be filled; rejected "
                f"episodes by reason: {counts or 'none'}{failure}"
            )

    def _keep_first(self, failure: str) -> None:
        if self.first_failure is None:
            self.first_failure = failure
