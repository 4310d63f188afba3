"""What an advantage function gets, and what it gives back; the same for built-in functions and a user's own.

Axis letters: S sequences (samples), N tokens of all of them laid end to end, with their prompts and what came between
turns; M sampled tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from areal_x.api.records import BoolArray, FloatArray, IntArray

__all__ = ["AdvantageFunction", "Advantages", "RewardedSamples"]


@dataclass(frozen=True, slots=True)
class RewardedSamples:
    """The samples of a step, or of one part of it, with their rewards."""

    rewards: FloatArray
    """One for each sample, [S]. NaN marks a masked sample, which no mean, deviation or maximum may count."""
    group_ids: npt.NDArray[np.int64]
    """Samples of one prompt have the same, [S]. Groups may differ in size."""
    lengths: IntArray
    """Tokens of each sample, 1 or more, [S]."""
    sampled: BoolArray
    """Whether an engine sampled the token, [N]; false in prompts and in what came between turns."""
    trained: BoolArray
    """Whether the token will be trained, [N]: sampled, young enough, and of a sample that is not masked."""
    kl_penalties: FloatArray | None = None
    """With ``algorithm.kl_in=reward``: coefficient times KL divergence of each sampled token, [N], 0 elsewhere."""
    values: FloatArray | None = None
    """With a critic (``critic.enabled``): the expected return from before each token on, [N]."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def counted(self) -> BoolArray:
        """Which samples have a reward, [S]."""
        return ~np.isnan(self.rewards)

    @property
    def penalized_rewards(self) -> FloatArray:
        """The rewards less the KL penalties of each sample's tokens, [S]."""
        if self.kl_penalties is None:
            return self.rewards
        starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        return (self.rewards - np.add.reduceat(self.kl_penalties, starts, dtype=np.float64)).astype(np.float32)

    def per_token(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """A value for each sample as one for each of its tokens: [S] to [N]."""
        return np.repeat(values, self.lengths)


@dataclass(frozen=True, slots=True)
class Advantages:
    """``values``: one for each sample [S], or one for each token [N]; those of tokens that are not trained do not
    matter. ``returns``: what a critic learns, [N]; where there is one they have to be given."""

    values: npt.NDArray[np.floating]
    returns: npt.NDArray[np.floating] | None = None


AdvantageFunction = Callable[[RewardedSamples], Advantages | npt.NDArray[np.floating]]
"""A plain array is taken for ``Advantages.values``."""
