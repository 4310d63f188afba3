"""Advantages that differ from token to token. Axis letters: S samples, N all their tokens, M the sampled ones.

What a policy decides are its sampled tokens: they alone are steps of time, so the prompt, and feedback between turns,
are skipped. A token too old to be trained is a step like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from areal_x.api.advantage_api import Advantages, RewardedSamples
from areal_x.api.errors import ConfigError
from areal_x.api.records import BoolArray
from areal_x.engine.train.advantages.groups import group_advantages
from areal_x.engine.train.advantages.scan import normalized, reverse_scan

__all__ = ["gae", "reinforce_pp", "reinforce_pp_baseline"]

_Floats = npt.NDArray[np.float64]
_EPS = 1e-8


def gae(samples: RewardedSamples, discount: float = 1.0, gae_lambda: float = 1.0, whiten: bool = True) -> Advantages:
    """Generalised advantage estimation (https://arxiv.org/abs/1506.02438, equation 16) over sampled tokens ::

        delta_t = r_t + discount * V_t+1 - V_t           V is 0 after the last token
        A_t     = delta_t + discount * gae_lambda * A_t+1
        R_t     = A_t + V_t                               the returns, which the critic learns

    r_t is the sample's reward at its last sampled token and 0 before, less the KL penalty of each token. Samples cut
    for their length end like all others.

    Args:
        samples: with the critic's values.
        whiten: afterwards take the mean of A over all trained tokens from it and divide by their standard deviation, as
            implementations of PPO do; the returns stay as they are.

    Raises:
        ConfigError: there are no values.
    """
    if samples.values is None:
        raise ConfigError("algorithm.advantage=gae needs the values of a critic")
    steps = _Steps.of(samples)
    values_M = samples.values.take(steps.places).astype(np.float64)
    next_values_M = np.append(values_M[1:], 0.0)
    next_values_M[steps.last] = 0.0
    errors_M = steps.rewards(samples, samples.rewards) + discount * next_values_M - values_M
    advantages_M = reverse_scan(errors_M, steps.last, discount * gae_lambda)
    return _finished(samples, steps, advantages_M, advantages_M + values_M, whiten)


def reinforce_pp(samples: RewardedSamples, discount: float = 1.0) -> Advantages:
    """REINFORCE++ (https://arxiv.org/abs/2501.03262): returns, normalised over all trained tokens of the batch ::

        G_t = r_t + discount * G_t+1              A_t = (G_t - mean of G) / (std of G + eps)

    r_t is as in ``gae``: with discount 1, G_t is the sample's reward less the KL penalties from token t on.
    """
    return _normalized_returns(samples, samples.rewards, discount)


def reinforce_pp_baseline(samples: RewardedSamples, discount: float = 1.0) -> Advantages:
    """REINFORCE++ with a baseline (https://arxiv.org/abs/2501.03262, the variant for several samples of a prompt): the
    mean of its group is taken from each reward, then all is as in ``reinforce_pp`` ::

        r'_i = r_i - mean of r in the group       A_t = (G'_t - mean of G') / (std of G' + eps)
    """
    centred_S = group_advantages(samples.rewards, samples.group_ids, "group_mean", "none")
    return _normalized_returns(samples, np.where(samples.counted, centred_S, np.nan), discount)


def _normalized_returns(samples: RewardedSamples, rewards_S: npt.NDArray[np.floating], discount: float) -> Advantages:
    steps = _Steps.of(samples)
    returns_M = reverse_scan(steps.rewards(samples, rewards_S), steps.last, discount)
    return _finished(samples, steps, returns_M, returns_M, whiten=True)


@dataclass(frozen=True, slots=True)
class _Steps:
    """The sampled tokens of all samples in a row."""

    places: npt.NDArray[np.int64]
    """Where each lies among all tokens, [M]."""
    last: npt.NDArray[np.int64]
    """Index into M of the last sampled token of each sample that has one."""
    has_any: BoolArray
    """Which samples have one, [S]."""

    @classmethod
    def of(cls, samples: RewardedSamples) -> _Steps:
        places_M = np.flatnonzero(samples.sampled)
        bounds = np.searchsorted(places_M, np.concatenate([[0], np.cumsum(samples.lengths, dtype=np.int64)]))
        has_any_S = np.diff(bounds) > 0
        return cls(places_M, bounds[1:][has_any_S] - 1, has_any_S)

    def rewards(self, samples: RewardedSamples, rewards_S: npt.NDArray[np.floating]) -> _Floats:
        """``rewards_S`` at each sample's last token, 0 before and in masked samples, less KL penalties; [M]."""
        rewards_M = np.zeros(len(self.places))
        rewards_M[self.last] = np.nan_to_num(rewards_S[self.has_any].astype(np.float64), nan=0.0)
        if samples.kl_penalties is not None:
            rewards_M -= samples.kl_penalties.take(self.places)
        return rewards_M


def _finished(
    samples: RewardedSamples, steps: _Steps, advantages_M: _Floats, returns_M: _Floats, whiten: bool
) -> Advantages:
    """Back among all tokens, normalised if asked; float32 [N], 0 where nothing was sampled."""
    if whiten:
        counted_N = samples.trained
        if not samples.counted.all():
            counted_N = counted_N & np.repeat(samples.counted, samples.lengths)
        advantages_M = normalized(advantages_M, counted_N.take(steps.places), _EPS)
    advantages_N = np.zeros(len(samples.sampled), dtype=np.float32)
    returns_N = np.zeros(len(samples.sampled), dtype=np.float32)
    advantages_N[steps.places] = advantages_M
    returns_N[steps.places] = returns_M
    return Advantages(advantages_N, returns_N)
