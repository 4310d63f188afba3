"""Estimates of the KL divergence to another policy from tokens sampled from this one (Schulman 2020,
http://joschu.net/blog/kl-approx.html)."""

from __future__ import annotations

import torch

__all__ = ["k3_divergence", "kl_divergence"]


def kl_divergence(logprobs: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
    """KL(pi || reference) of each token sampled from pi, [M], with d = log pi - log reference:

        k1 = d,    k2 = d^2 / 2,    k3 = e^-d - 1 + d

    k1 has no bias, but may be negative, and the mean of its gradient is 0: it belongs in the reward (``kl_in``). The
    gradient of k2 is that of KL(pi || reference). k3 has no bias, is never negative, and its gradient is that of
    KL(reference || pi). All are exactly 0 where the two agree.
    """
    if estimator == "k1":
        return logprobs - reference
    if estimator == "k2":
        return 0.5 * (logprobs - reference).square()
    return k3_divergence(logprobs, reference)


def k3_divergence(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """k3 of ``kl_divergence``."""
    difference = reference - logprobs
    return torch.expm1(difference) - difference
