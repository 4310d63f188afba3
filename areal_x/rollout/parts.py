"""How many groups may wait for the trainer, and how admission slows down as they gather."""

from __future__ import annotations

__all__ = ["READY_GROUPS", "ReadyLimit", "max_ready_groups"]

READY_GROUPS = 8
"""Groups that may wait for a trainer that takes parts, to begin with; ``ReadyLimit`` adapts it."""
_WAITING_SHARE = 0.05
_STEP = 0.5


def max_ready_groups(groups_per_part: int, groups_per_step: int) -> int | None:
    """The executor's ``max_ready_groups``: at least a part must fit. None (its default) when a step is taken whole."""
    return None if groups_per_part >= groups_per_step else max(READY_GROUPS, groups_per_part)


class ReadyLimit:
    """Requests are admitted in full up to half of a limit of ready groups, and none from one and a half times it on.

    Linear in between: a group completes long after its admission, so a switch at one number overshoots in both
    directions. The limit follows the trainer. Each part that has to be waited for raises it, each that does not lowers
    it, so that one part in twenty is waited for, whichever of engine and trainer is a little quicker: fewer waits cost
    more masked tokens, since what is ready ages. It stays between half and almost twice what it was at first.

    Args:
        max_ready: the limit at first. None: a switch, a little above a step, for a trainer that takes whole steps.
    """

    def __init__(self, max_ready: int | None, groups_per_step: int) -> None:
        self._adapts = max_ready is not None
        self._limit = float(max_ready or max(1, groups_per_step + groups_per_step // 4))
        self._lowest, self._highest = self._limit / 2, self._limit * 1.75

    def on_asked(self, must_wait: bool) -> None:
        """The trainer asks for a part, which is ready or must be waited for."""
        if self._adapts:
            change = _STEP * (1 - _WAITING_SHARE) if must_wait else -_STEP * _WAITING_SHARE
            self._limit = min(self._highest, max(self._lowest, self._limit + change))

    def share(self, num_ready: int) -> float:
        """The share of the engine's places that may be filled, 0 to 1. Below 0 ready groups: so many are missing."""
        if not self._adapts:
            return float(num_ready < self._limit)
        return min(1.0, max(0.0, 1.5 - num_ready / self._limit))
