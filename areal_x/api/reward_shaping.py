"""Formulas that shape rewards, for rewards and for post-processing alike."""

from __future__ import annotations

__all__ = ["overlong_penalty"]


def overlong_penalty(length: float, maximum: float, buffer: float, penalty: float) -> float:
    """What to add to the reward of a long completion (DAPO, https://arxiv.org/abs/2503.14476, equation 13).

    0 up to ``maximum - buffer``, then falling evenly to ``-penalty`` at ``maximum``. Without a buffer it is 0.
    """
    excess = (length - (maximum - buffer)) / buffer if buffer else 0.0
    return -penalty * min(1.0, excess) if penalty and excess > 0 else 0.0
