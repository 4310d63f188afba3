"""How many groups may wait for the trainer, and how admission slows down as they gather."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["READY_GROUPS", "ReadyLimit", "max_ready_groups"]

READY_GROUPS = 8
"""Groups that wait for the next part. They cover the unevenness of completions, and each of them ages meanwhile.

Measured on lognormal lengths (sigma 1.0, 256 slots, a balanced trainer): six leave the trainer idle for a tenth of the
time with groups of eight, ten mask a quarter more tokens than the least possible.
"""


def max_ready_groups(groups_per_part: int, groups_per_step: int) -> int | None:
    """The executor's ``max_ready_groups``: at least a part must fit. None (its default) when a step is taken whole."""
    return None if groups_per_part >= groups_per_step else max(READY_GROUPS, groups_per_part)


class ReadyLimit(NamedTuple):
    """Requests are admitted in full up to ``full`` ready groups, and none from ``empty`` on; linearly in between.

    A group completes long after its admission, so a switch at one number overshoots in both directions: the trainer
    waits more for the same age of what it gets. A step taken whole needs its whole step ready, and keeps the switch.
    """

    full: int
    empty: int

    @classmethod
    def around(cls, max_ready: int | None, groups_per_step: int) -> ReadyLimit:
        """Half of ``max_ready`` below and above it. None: a switch, a little above a step."""
        if max_ready is None:
            limit = groups_per_step + groups_per_step // 4
            return cls(limit - 1, max(1, limit))
        return cls(max_ready // 2, max_ready + (max_ready + 1) // 2)

    def share(self, num_ready: int) -> float:
        """The share of the engine's places that may be filled, 0 to 1. Below 0 ready groups: so many are missing."""
        return min(1.0, max(0.0, (self.empty - num_ready) / (self.empty - self.full)))
