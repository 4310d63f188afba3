"""The objective against an independent implementation and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from areal_x.api.config import AlgorithmConfig
from areal_x.engine.train.loss import POLICY_MAXIMA, POLICY_SUMS, k3_divergence, policy_loss


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def metrics(result) -> dict[str, float]:
    names = [*POLICY_SUMS, *POLICY_MAXIMA]
    return dict(zip(names, torch.cat([result.sums, result.maxima]).tolist(), strict=True))


def test_worked_by_hand() -> None:
    """Ratios new/proximal 2, 0.5, 1.1, 1; weights proximal/behaviour 1, 2, 10 (capped at 5), 0.5.

    Advantages 1, -1, 1, -2; clip 0.2 low and 0.3 high. Surrogates min(r A, clip(r) A): 1.3, -0.8, 1.1, -2.
    Times the weights: 1.3, -1.6, 5.5, -1, a sum of 4.2; over 4 tokens the loss is -1.05.
    """
    proximal = tensor(-1.0, -2.0, -1.5, -3.0)
    new = proximal + torch.log(tensor(2.0, 0.5, 1.1, 1.0))
    behaviour = proximal - torch.log(tensor(1.0, 2.0, 10.0, 0.5))
    config = AlgorithmConfig(clip_low=0.2, clip_high=0.3, behaviour_weight_cap=5.0)
    result = policy_loss(new, behaviour, tensor(1, -1, 1, -2), config, num_global_tokens=4, proximal=proximal)
    assert result.loss.item() == pytest.approx(-1.05, abs=1e-12)
    got = metrics(result)
    assert got["loss"] == pytest.approx(-4.2, abs=1e-12)
    assert (got["clip_fraction_high"], got["clip_fraction_low"]) == (1, 1)
    assert got["behaviour_weight_capped_fraction"] == 1
    assert got["behaviour_weight_mean"] == pytest.approx(8.5)
    assert got["behaviour_weight_max"] == pytest.approx(5.0)
    assert got["behaviour_proximal_difference_max"] == pytest.approx(math.log(10))


def numpy_loss(new, proximal, behaviour, reference, advantages, config: AlgorithmConfig) -> float:
    total = 0.0
    for n, p, b, r, a in zip(new, proximal, behaviour, reference, advantages, strict=True):
        ratio = np.exp(n - p) if config.decoupled else np.exp(n - b)
        bounded = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
        term = -min(ratio * a, bounded * a)
        if config.decoupled:
            term *= min(np.exp(p - b), config.behaviour_weight_cap)
        total += term + config.kl_coefficient * (np.exp(r - n) - (r - n) - 1)
    return total / 100


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_equals_an_independent_numpy_version(decoupled: bool, kl: float) -> None:
    generator = np.random.default_rng(0)
    new, proximal, behaviour, reference = (-3 + generator.standard_normal((4, 64)) * 0.7).astype(np.float32)
    advantages = generator.standard_normal(64).astype(np.float32)
    config = AlgorithmConfig(
        clip_low=0.1, clip_high=0.4, decoupled=decoupled, behaviour_weight_cap=2.0, kl_coefficient=kl
    )
    result = policy_loss(
        torch.from_numpy(new),
        torch.from_numpy(behaviour),
        torch.from_numpy(advantages),
        config,
        num_global_tokens=100,
        proximal=torch.from_numpy(proximal),
        reference=torch.from_numpy(reference),
    )
    expected = numpy_loss(*(x.astype(np.float64) for x in (new, proximal, behaviour, reference, advantages)), config)
    assert abs(result.loss.item() - expected) <= 1e-6


def test_gradient_is_zero_where_clipped_and_weighted_elsewhere() -> None:
    new = tensor(0.5, -0.5, 0.0, -1.0).requires_grad_()
    proximal = tensor(0.0, 0.0, 0.0, -1.0)
    behaviour = tensor(0.0, 0.0, -math.log(3.0), -1.0)
    result = policy_loss(new, behaviour, tensor(1, -1, 2, 1), AlgorithmConfig(), num_global_tokens=1, proximal=proximal)
    result.loss.backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, tensor(0, 0, -6, -1))


def test_without_a_proximal_policy_the_ratio_is_exactly_one() -> None:
    generator = torch.Generator().manual_seed(0)
    new = (torch.randn(1000, generator=generator) - 3).requires_grad_()
    behaviour, advantages = torch.randn(2, 1000, generator=generator)
    result = policy_loss(new, behaviour - 3, advantages, AlgorithmConfig(), num_global_tokens=1000)
    assert metrics(result)["ratio_mean"] == 1000
    assert metrics(result)["clip_fraction_low"] == metrics(result)["clip_fraction_high"] == 0


def test_k3_is_zero_for_equal_policies_and_never_negative() -> None:
    logprobs, other = torch.randn(2, 10000, generator=torch.Generator().manual_seed(0))
    assert (k3_divergence(logprobs, logprobs) == 0).all()
    assert (k3_divergence(logprobs, other) >= 0).all()


def test_kl_without_a_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match="reference"):
        policy_loss(tensor(0.0), tensor(0.0), tensor(1.0), AlgorithmConfig(kl_coefficient=0.1), num_global_tokens=1)
