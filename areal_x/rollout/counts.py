"""The books of a run: every started episode ends in exactly one place."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["EpisodeCounts"]


@dataclass(slots=True)
class EpisodeCounts:
    """Episodes by how they ended. ``submitted`` equals the sum of all ends plus those in flight, at every moment.

    ``trained`` were handed to a train step (one whose tokens were all over age is among them, and counted apart in
    the staleness counts); ``rejected`` and ``failed`` are by reason. ``scores`` counts all scores by status, whatever
    became of their episode, so it is no part of the sum.
    """

    submitted: int = 0
    trained: int = 0
    cancelled: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    scores: Counter[str] = field(default_factory=Counter)
    first_tracebacks: dict[str, str] = field(default_factory=dict)
    """The first traceback of each reason of ``failed``."""

    @property
    def ended(self) -> int:
        """Episodes that are in exactly one of the four ends."""
        return self.trained + self.cancelled + self.rejected.total() + self.failed.total()

    @property
    def in_flight(self) -> int:
        """Episodes that run, wait for the rest of their group, or wait for a train step."""
        return self.submitted - self.ended

    def check(self, num_in_flight: int) -> None:
        """Compare the books with what is there.

        Raises:
            AssertionError: an episode was lost or counted twice.
        """
        if self.in_flight != num_in_flight:
            raise AssertionError(
                f"episodes are not conserved: {self.submitted} submitted, {self.trained} trained, "
                f"{self.rejected.total()} rejected, {self.failed.total()} failed, {self.cancelled} cancelled, "
                f"{num_in_flight} in flight"
            )
