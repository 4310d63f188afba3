"""What a policy loss and a correction get and give back, built in or in a user's file.

Axis letters: M trained tokens of one micro-batch, S sequences of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

__all__ = ["Correction", "LossTokens", "TokenLoss", "where_true"]


class TokenLoss(NamedTuple):
    """What a policy loss gives back. The names must be the same whatever the tokens are, also when there are none."""

    losses: torch.Tensor
    """[M], to be minimised, with gradient; corrections and weights of the aggregation come afterwards."""
    means: Mapping[str, torch.Tensor] = {}
    """Metrics by name, a number (or bool) [M] for each token; ``train/<name>`` is their mean over trained tokens."""
    maxima: Mapping[str, torch.Tensor] = {}
    """Likewise, of numbers that are never negative; ``train/<name>`` is the largest."""


class Correction(NamedTuple):
    """What a correction gives back."""

    weights: torch.Tensor
    """[M], without gradient: what each token's loss is multiplied by; 0 masks the token."""
    means: Mapping[str, torch.Tensor] = {}
    """As of ``TokenLoss``."""
    maxima: Mapping[str, torch.Tensor] = {}
    """As of ``TokenLoss``."""


def _alone(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclass(frozen=True)
class LossTokens:
    """The trained tokens of some sequences, in the order of the batch. Every tensor is [M]."""

    logprobs: torch.Tensor
    """Under the policy that is trained, pi, with gradient."""
    behaviour: torch.Tensor
    """Under the policy that sampled, mu, as its engine recorded them."""
    proximal: torch.Tensor
    """Under the policy at the start of the step, pi_prox; with a single update these are pi's own values."""
    anchor: torch.Tensor
    """What ratios are to: ``proximal``, or ``behaviour`` with ``correction=none``."""
    advantages: torch.Tensor
    sequence: torch.Tensor
    """int64, which of the batch's sequences a token is of; never descending."""
    num_sequences: int
    """S: all that the batch has, also those without a token here."""
    lag: torch.Tensor | None = None
    """int32, versions between the weights that sampled a token and those that are trained; None: not known, all 0."""
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] = field(default=_alone, repr=False)
    """Adds up, over the ranks that hold other tokens of the same sequences."""

    @cached_property
    def ratio(self) -> torch.Tensor:
        """pi / anchor, with gradient."""
        return torch.exp(self.logprobs - self.anchor)

    @cached_property
    def ratio_value(self) -> torch.Tensor:
        """``ratio`` without gradient."""
        return (self.logprobs.detach() - self.anchor).exp_()

    @cached_property
    def drift(self) -> torch.Tensor:
        """log pi_prox - log mu, without gradient: older weights, and the engine's other arithmetic."""
        return self.proximal - self.behaviour

    def sequence_sum(self, values: torch.Tensor) -> torch.Tensor:
        """For each token, the sum of ``values`` over the trained tokens of its sequence; without gradient. All ranks of
        a sequence-parallel group must call it equally often."""
        return self._sums(values).index_select(0, self.sequence).to(values.dtype)

    def sequence_mean(self, values: torch.Tensor) -> torch.Tensor:
        """For each token, the mean over the trained tokens of its sequence; otherwise as ``sequence_sum``."""
        means = self._sums(values) / self._counts.clamp(min=1)
        return means.index_select(0, self.sequence).to(values.dtype)

    @cached_property
    def _starts(self) -> torch.Tensor:
        """Where each sequence's tokens begin, and the end of the last, int64 [S + 1]."""
        numbers = torch.arange(self.num_sequences + 1, device=self.sequence.device)
        return torch.searchsorted(self.sequence, numbers)

    @cached_property
    def _counts(self) -> torch.Tensor:
        """Trained tokens of each sequence, on all ranks, float64 [S]."""
        return self.sum_over_ranks(self._starts.diff().to(torch.float64))

    def _sums(self, values: torch.Tensor) -> torch.Tensor:
        """float64 [S]."""
        sums = torch.segment_reduce(values.detach().to(torch.float64), "sum", offsets=self._starts, unsafe=True)
        return self.sum_over_ranks(sums)


def where_true(compare: Callable[..., torch.Tensor], values: torch.Tensor, other: torch.Tensor | float) -> torch.Tensor:
    """1.0 where ``compare(values, other)`` holds, else 0.0, in the type of ``values``; on a CPU this is several times
    faster than a mask and what is done with it."""
    return compare(values, other, out=torch.empty_like(values))
