"""The objective as the configuration says it, over one micro-batch at a time. ::

    loss = sum over tokens of scale * (weight * policy loss + kl_coefficient * KL - entropy_coefficient * entropy)

which an update divides by the sum of all tokens' shares (``inputs.py``). Everything else are metrics: sums over tokens,
which do not depend on how a step was cut either.

Axis letters: M trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from areal_x.api.bound_functions import bound_function
from areal_x.api.config import AlgorithmConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.objective.corrections import CORRECTIONS, WHOLE_BATCH
from areal_x.engine.train.objective.divergence import k3_divergence, kl_divergence
from areal_x.engine.train.objective.inputs import LossInputs
from areal_x.engine.train.objective.losses import LOSSES
from areal_x.engine.train.objective.tokens import Correction, LossTokens, TokenLoss, where_true

__all__ = ["Objective", "ObjectiveTerms"]


@dataclass(frozen=True, slots=True)
class ObjectiveTerms:
    """Of one micro-batch. ``loss`` is differentiable, everything else is detached. Sums and maxima are 0-d."""

    loss: torch.Tensor
    """Sum, not yet divided by the shares of the update."""
    policy_loss: torch.Tensor
    """The part of it that is the policy loss."""
    share: torch.Tensor
    """float64, this micro-batch's part of that divisor."""
    sums: Mapping[str, torch.Tensor]
    """To be divided by the number of trained tokens."""
    fresh_sums: Mapping[str, torch.Tensor]
    """Over the ``num_fresh`` tokens of the newest weights."""
    stale_sums: Mapping[str, torch.Tensor]
    """Over all others."""
    maxima: Mapping[str, torch.Tensor]
    fresh_maxima: Mapping[str, torch.Tensor]
    num_fresh: torch.Tensor


class Objective:
    """Policy loss, correction, KL and entropy of ``algorithm``; the same on every rank.

    Raises:
        ConfigError: a function does not exist, does not take its arguments, or gives back something else than it must.
    """

    def __init__(self, algorithm: AlgorithmConfig) -> None:
        self._algorithm = algorithm
        clips = {name: getattr(algorithm, name) for name in ("clip_low", "clip_high", "dual_clip")}
        self._loss: Callable[[LossTokens], TokenLoss] = bound_function(
            "algorithm.policy_loss", algorithm.policy_loss, LOSSES, algorithm.policy_loss_kwargs, clips
        )
        self._correct: Callable[[LossTokens], Correction] | None = None
        if algorithm.correction != "none":
            self._correct = bound_function(
                "algorithm.correction", algorithm.correction, CORRECTIONS, algorithm.correction_kwargs
            )
        elif algorithm.correction_kwargs:
            raise ConfigError(f"algorithm.correction_kwargs={algorithm.correction_kwargs}: correction=none takes none")
        if algorithm.aggregation == "constant" and algorithm.loss_length is None:
            raise ConfigError("algorithm.loss_length: aggregation=constant needs a length to divide by")
        self.corrects_whole_batch = self._correct is not None and (
            algorithm.correction in WHOLE_BATCH or algorithm.correction not in CORRECTIONS
        )
        """Whether the correction must see all tokens of a step at once."""
        self.uses_reference = bool(algorithm.kl_coefficient) and algorithm.kl_in == "loss"
        """Whether the loss itself needs the reference model."""
        self.uses_entropy = bool(algorithm.entropy_coefficient)
        """Whether the loss needs entropies with gradient."""
        self._try_without_tokens()

    def correction_of(self, inputs: LossInputs, ranks: RankContext = ONE_RANK) -> Correction:
        """The correction of these tokens, whose ``proximal`` is there."""
        assert inputs.proximal is not None
        return self._corrected(self._tokens(inputs.proximal, inputs, ranks))

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor, inputs: LossInputs, ranks: RankContext = ONE_RANK
    ) -> ObjectiveTerms:
        """Terms of M tokens.

        Args:
            logprobs: [M] of the policy, with gradient.
            entropy: [M] of its distributions; with gradient where ``uses_entropy``.
            inputs: [M]. Without ``proximal`` the policy's own values are meant.
            ranks: that share this micro-batch.
        """
        algorithm = self._algorithm
        tokens = self._tokens(logprobs, inputs, ranks)
        losses, means, maxima = self._loss(tokens)
        sums = {name: _sum(values) for name, values in means.items()}
        correction = inputs.correction
        if correction is None and self._correct is not None:
            correction = self._corrected(tokens)
        if correction is not None:
            losses = losses * correction.weights
        scales = inputs.scales
        policy_loss = loss = _scaled_sum(losses, scales)
        if inputs.reference is not None:
            divergence = kl_divergence(logprobs, inputs.reference, algorithm.kl_estimator)
            sums["reference_kl"] = _sum(divergence.detach())
            if self.uses_reference:
                loss = loss + algorithm.kl_coefficient * _scaled_sum(divergence, scales)
        elif self.uses_reference:
            raise ValueError("the KL term of the loss needs the reference model's log-probabilities")
        sums["entropy"] = _sum(entropy.detach())
        if self.uses_entropy:
            loss = loss - algorithm.entropy_coefficient * _scaled_sum(entropy, scales)
        with torch.no_grad():
            return _with_metrics(loss, policy_loss, tokens, correction, sums, maxima, inputs)

    def _tokens(self, logprobs: torch.Tensor, inputs: LossInputs, ranks: RankContext) -> LossTokens:
        proximal = logprobs.detach() if inputs.proximal is None else inputs.proximal
        return LossTokens(
            logprobs=logprobs,
            behaviour=inputs.behaviour,
            proximal=proximal,
            anchor=inputs.behaviour if self._correct is None else proximal,
            advantages=inputs.advantages,
            sequence=inputs.sequence,
            num_sequences=inputs.num_sequences,
            lag=inputs.lag,
            sum_over_ranks=ranks.sum_of_sequence,
        )

    @torch.no_grad()
    def _corrected(self, tokens: LossTokens) -> Correction:
        assert self._correct is not None
        return self._correct(tokens)

    def _try_without_tokens(self) -> None:
        """A rank may have a micro-batch without tokens: functions are tried on one, so that a wrong one ends here."""
        none = torch.zeros(0)
        tokens = self._tokens(none, LossInputs(none, none, none.long(), 1, none.int()), ONE_RANK)
        _check("algorithm.policy_loss", self._algorithm.policy_loss, self._loss(tokens), TokenLoss)
        if self._correct is not None:
            _check("algorithm.correction", self._algorithm.correction, self._corrected(tokens), Correction)


def _check(key: str, name: str, result: object, kind: type[TokenLoss] | type[Correction]) -> None:
    """Raise ``ConfigError`` unless a function gave, of no tokens, what it must."""
    if not isinstance(result, kind):
        raise ConfigError(f"{key}={name!r} returned a {type(result).__name__}; it must return a {kind.__name__}")
    for what, values in {kind._fields[0]: result[0], **result.means, **result.maxima}.items():
        if not isinstance(values, torch.Tensor) or values.shape != (0,):
            shape = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ConfigError(f"{key}={name!r}: {what} of 0 tokens is {shape}; it must be a tensor of one value each")


def _with_metrics(
    loss: torch.Tensor,
    policy_loss: torch.Tensor,
    tokens: LossTokens,
    correction: Correction | None,
    sums: dict[str, torch.Tensor],
    maxima: Mapping[str, torch.Tensor],
    inputs: LossInputs,
) -> ObjectiveTerms:
    """The terms with those metrics that every objective has."""
    difference = tokens.drift.abs()
    divergence = k3_divergence(tokens.behaviour, tokens.proximal)
    fresh = torch.ones_like(difference)
    if tokens.lag is not None:
        torch.le(tokens.lag, 0, out=fresh)
    stale, num_fresh = 1.0 - fresh, fresh.sum()
    sums["ratio_mean"] = _sum(tokens.ratio_value)
    sums["behaviour_difference_mean"] = _sum(difference)
    sums["behaviour_kl"] = _sum(divergence)
    sums["stale_fraction"] = stale.sum()
    stale_sums: dict[str, torch.Tensor] = {}
    largest = {"ratio_max": tokens.ratio_value, "behaviour_difference_max": difference, **maxima}
    if correction is not None:
        weights, masked = correction.weights, where_true(torch.eq, correction.weights, 0.0)
        sums["behaviour_weight_mean"] = _sum(weights)
        sums["behaviour_masked_fraction"] = _sum(masked)
        sums.update({name: _sum(values) for name, values in correction.means.items()})
        stale_sums["stale_weight_mean"] = _dot(weights, stale)
        stale_sums["stale_masked_fraction"] = _dot(masked, stale)
        largest |= {"behaviour_weight_max": weights, **correction.maxima}
    shares = inputs.shares
    return ObjectiveTerms(
        loss=loss,
        policy_loss=policy_loss.detach(),
        share=torch.tensor(float(len(fresh)), dtype=torch.float64) if shares is None else shares.sum(),
        sums=sums,
        fresh_sums={"mismatch_mean": _dot(difference, fresh), "mismatch_kl": _dot(divergence, fresh)},
        stale_sums=stale_sums,
        maxima={name: _largest(values) for name, values in largest.items()},
        fresh_maxima={"mismatch_max": _largest(difference * fresh)},
        num_fresh=num_fresh,
    )


def _scaled_sum(values: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return values.sum() if scales is None else _dot(values, scales)


def _dot(values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return values.dot(other.to(values.dtype))


def _sum(values: torch.Tensor) -> torch.Tensor:
    return torch.count_nonzero(values) if values.dtype == torch.bool else values.sum()


def _largest(values: torch.Tensor) -> torch.Tensor:
    return values.max() if len(values) else values.new_zeros(())
