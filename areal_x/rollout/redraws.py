"""How many groups are drawn in place of rejected ones, as a state machine: observations in, a decision out.

A step has ``groups_per_step`` places. A rejected group gives its place back, and another group is drawn for it, up to
``max_redraws`` times in each step; from then on its place stays empty: a hole, which the step counts like a group. So a
step is complete after ``groups_per_step`` places, however many of them are holes, and draws ``groups_per_step +
max_redraws`` groups at most. What is rejected once the step's places have been taken counts for the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Redraws"]


@dataclass(slots=True)
class Redraws:
    """The rule and its state: ``num_used`` redraws and ``num_taken`` places of the step under way.

    Args:
        max_redraws: in each step; ``None`` for as many as it takes.
        groups_per_step: places of a step.
    """

    max_redraws: int | None
    groups_per_step: int
    num_used: int = 0
    num_taken: int = 0
    num_holes: int = 0
    """Holes that the trainer has taken, a running total."""

    def may_redraw(self) -> bool:
        """A group was rejected: whether another is drawn in its place, which is counted; else it leaves a hole."""
        if self.max_redraws is not None and self.num_used >= self.max_redraws:
            return False
        self.num_used += 1
        return True

    def on_taken(self, num_groups: int, num_holes: int) -> None:
        """The trainer has taken places of the step; after the last one the next step begins."""
        self.num_holes += num_holes
        self.num_taken += num_groups + num_holes
        if self.num_taken >= self.groups_per_step:
            self.num_taken %= self.groups_per_step
            self.num_used = 0
