"""The policy objective, all variants in one place. Pure functions of tensors over M trained tokens.

With pi the policy being trained, mu the behaviour policy that sampled (one or more versions old) and pi_prox the
policy at the start of the step, the decoupled objective (Hilton et al. 2021; AReaL 2025) of one token is

    - min(pi_prox / mu, cap) * min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A),      r = pi / pi_prox

and the plain clipped one (PPO) takes r = pi / mu and no weight. The first factor is clamped at the cap (truncated
importance sampling), not masked: every token still counts, and no weight exceeds the cap. Losses are sums over tokens
divided by the token count of the whole batch, so they do not depend on how the batch is cut into micro-batches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from areal_x.api.config import AlgorithmConfig

__all__ = ["POLICY_MAXIMA", "POLICY_SUMS", "PolicyLoss", "k3_divergence", "policy_loss"]

POLICY_SUMS = (
    "loss",
    "policy_loss",
    "reference_kl",
    "entropy",
    "clip_fraction_low",
    "clip_fraction_high",
    "behaviour_weight_mean",
    "behaviour_weight_capped_fraction",
    "behaviour_proximal_difference_mean",
    "behaviour_kl",
    "ratio_mean",
)
"""What ``PolicyLoss.sums`` adds up over tokens, in its order."""

POLICY_MAXIMA = ("behaviour_weight_max", "behaviour_proximal_difference_max")
"""What ``PolicyLoss.maxima`` holds, in its order."""


class PolicyLoss(NamedTuple):
    """``loss`` is differentiable and already divided by the global token count; the rest is detached."""

    loss: torch.Tensor
    sums: torch.Tensor
    """Token sums named by ``POLICY_SUMS``."""
    maxima: torch.Tensor
    """Maxima named by ``POLICY_MAXIMA``."""


def k3_divergence(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Schulman's k3 estimate of KL(pi || reference) per token sampled from pi: e^d - d - 1, d = reference - logprobs.

    Never negative, and exactly 0 where the two agree.
    """
    difference = reference - logprobs
    return torch.expm1(difference) - difference


def policy_loss(
    logprobs: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    algorithm: AlgorithmConfig,
    *,
    num_global_tokens: float,
    proximal: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
) -> PolicyLoss:
    """The objective and its metrics over M trained tokens; every tensor is [M].

    Args:
        logprobs: log-probabilities under the policy being trained, with gradient.
        behaviour: those recorded when the tokens were sampled.
        advantages: one per token.
        num_global_tokens: trained tokens of the whole batch, over all micro-batches and ranks.
        proximal: those of the policy at the start of the step. None: the policy's own, detached, which is what they
            are when a batch gets a single optimiser step.
        reference: those of the reference model; needed when ``kl_coefficient`` is not 0.
        entropy: of the policy's distribution, for the metrics only.
    """
    current = logprobs.detach()
    proximal = current if proximal is None else proximal
    anchor = proximal if (algorithm.correction != "none") else behaviour
    ratio = torch.exp(logprobs - anchor)
    clipped = torch.clamp(ratio, 1.0 - algorithm.clip_low, 1.0 + algorithm.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    drift = proximal - behaviour
    uncapped = torch.exp(drift)
    weight = uncapped.clamp(max=algorithm.correction_kwargs.get("high", 5.0))
    token_losses = -surrogate * weight if (algorithm.correction != "none") else -surrogate
    loss = policy_term = token_losses.sum()
    zero = kl_term = policy_term.new_zeros(())
    if algorithm.kl_coefficient:
        if reference is None:
            raise ValueError("kl_coefficient is not 0, so policy_loss needs the reference model's log-probabilities")
        kl_term = k3_divergence(logprobs, reference).sum()
        loss = loss + algorithm.kl_coefficient * kl_term
    with torch.no_grad():
        detached_ratio = ratio.detach()
        sums = torch.stack(
            [
                loss.detach(),
                policy_term.detach(),
                kl_term.detach(),
                zero if entropy is None else entropy.sum().to(loss.dtype),
                ((detached_ratio < 1.0 - algorithm.clip_low) & (advantages < 0)).sum().to(loss.dtype),
                ((detached_ratio > 1.0 + algorithm.clip_high) & (advantages > 0)).sum().to(loss.dtype),
                weight.sum(),
                (uncapped > algorithm.correction_kwargs.get("high", 5.0)).sum().to(loss.dtype),
                drift.abs().sum(),
                k3_divergence(behaviour, current).sum(),
                detached_ratio.sum(),
            ]
        )
        maxima = torch.stack([weight.max(), drift.abs().max()]) if len(weight) else weight.new_zeros(2)
    return PolicyLoss(loss / num_global_tokens, sums, maxima)
