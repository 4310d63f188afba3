"""Each loss against an independent numpy version, autograd of the plain formula, and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from loss_tokens import Numbers, make_tokens, random_numbers, tensor

from areal_x.engine.train.objective.divergence import k3_divergence, kl_divergence
from areal_x.engine.train.objective.losses import LOSSES
from areal_x.engine.train.objective.tokens import LossTokens

CLIPS = {"clip_low": 0.1, "clip_high": 0.3}
SETTINGS: dict[str, dict[str, float]] = {
    "clip": CLIPS,
    "gspo": {"clip_low": 0.02, "clip_high": 0.04},
    "cispo": CLIPS,
    "sapo": {"tau_pos": 0.8, "tau_neg": 1.3},
    "reinforce": {},
    "likelihood": {},
}


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def by_numpy(name: str, numbers: Numbers, settings: dict[str, float]) -> np.ndarray:
    """One token after the other, in float64."""
    losses = []
    for m, (new, anchor, advantage) in enumerate(
        zip(numbers["new"], numbers["proximal"], numbers["advantages"], strict=True)
    ):
        ratio = np.exp(new - anchor)
        if name == "clip":
            loss = clipped(ratio, advantage, settings["clip_low"], settings["clip_high"])
            if "dual_clip" in settings and advantage < 0:
                loss = min(loss, -settings["dual_clip"] * advantage)
        elif name == "gspo":
            own = numbers["sequence"] == numbers["sequence"][m]
            sequence_ratio = np.exp((numbers["new"][own] - numbers["proximal"][own]).mean())
            loss = clipped(sequence_ratio, advantage, settings["clip_low"], settings["clip_high"])
        elif name == "cispo":
            loss = -min(max(ratio, 1 - settings["clip_low"]), 1 + settings["clip_high"]) * advantage * new
        elif name == "sapo":
            tau = settings["tau_pos"] if advantage > 0 else settings["tau_neg"]
            loss = -4 / (tau * (1 + np.exp(-tau * (ratio - 1)))) * advantage
        elif name == "reinforce":
            loss = -ratio * advantage * new
        else:
            loss = -advantage * new
        losses.append(loss)
    return np.array(losses)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*SETTINGS, "dual"])
def test_equals_an_independent_numpy_version(name: str, seed: int) -> None:
    numbers = random_numbers(seed)
    settings = SETTINGS["clip"] | {"dual_clip": 1.5} if name == "dual" else SETTINGS[name]
    name = "clip" if name == "dual" else name
    expected = by_numpy(name, numbers, settings)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        losses = LOSSES[name](make_tokens(numbers, dtype=dtype), **settings).losses.detach()
        np.testing.assert_allclose(losses.double().numpy(), expected, rtol=tolerance, atol=tolerance)


def surrogate_gradient(name: str, tokens: LossTokens, settings: dict[str, float]) -> torch.Tensor:
    """Gradient of the formula in plain operations, a surrogate where the loss itself is one."""
    new = tokens.logprobs.detach().clone().requires_grad_()
    ratio = torch.exp(new - tokens.anchor)
    advantages = tokens.advantages
    if name == "gspo":
        # The gradient of the sequence form: s is differentiated through all tokens of the sequence.
        members = (tokens.sequence[:, None] == torch.arange(8)).double()
        means = (members.T @ (new - tokens.anchor)) / members.sum(0).clamp(min=1)
        ratio = torch.exp(members @ means)
    if name in ("clip", "gspo"):
        bounded = ratio.clamp(1 - settings["clip_low"], 1 + settings["clip_high"])
        objective = torch.minimum(ratio * advantages, bounded * advantages)
    elif name == "cispo":
        objective = ratio.detach().clamp(1 - settings["clip_low"], 1 + settings["clip_high"]) * advantages * new
    elif name == "sapo":
        tau = torch.where(advantages > 0, settings["tau_pos"], settings["tau_neg"])
        objective = 4 / tau * advantages / (1 + torch.exp(-tau * (ratio - 1)))
    elif name == "reinforce":
        objective = ratio * advantages  # what the weight of the log-probability stands for
    else:
        objective = advantages * new
    return torch.autograd.grad(-objective.sum(), new)[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_those_of_the_plain_formula(name: str) -> None:
    numbers = random_numbers(3)
    if name == "gspo":  # One advantage for each sequence, as the paper's sequence form has.
        numbers["advantages"] = np.array([0, 1, -2, 0.5, -1, 0, 2, -0.5])[numbers["sequence"].astype(int)]
    tokens = make_tokens(numbers)
    LOSSES[name](tokens, **SETTINGS[name]).losses.sum().backward()
    assert tokens.logprobs.grad is not None
    torch.testing.assert_close(tokens.logprobs.grad, surrogate_gradient(name, tokens, SETTINGS[name]))


def by_hand(ratios: list[float], advantages: list[float], sequence: list[int] | None = None) -> LossTokens:
    """Tokens of log-probability -1 at the anchor."""
    size = len(ratios)
    return make_tokens(
        {
            "new": -1 + np.log(ratios),
            "proximal": np.full(size, -1.0),
            "behaviour": np.full(size, -1.0),
            "advantages": np.array(advantages, float),
            "sequence": np.array(sequence or [0] * size, float),
            "lag": np.zeros(size),
        }
    )


def check(loss: Callable[[], object], expected: list[float], **means: list[float]) -> None:
    losses, found, _ = loss()  # type: ignore[misc]
    torch.testing.assert_close(losses.detach(), tensor(*expected))
    for name, values in means.items():
        torch.testing.assert_close(found[name].double(), tensor(*values))


def test_clip_by_hand() -> None:
    """min(2, 1.3) = 1.3; min(-0.5, -0.8) = -0.8; 1.1; -2 * 1; min(-8, -2.6), bounded at 3 * -2 = -6."""
    tokens = by_hand([2, 0.5, 1.1, 1, 4], [1, -1, 1, -2, -2])
    check(
        lambda: LOSSES["clip"](tokens, clip_low=0.2, clip_high=0.3, dual_clip=3.0),
        [-1.3, 0.8, -1.1, 2, 6],
        clip_fraction_low=[0, 1, 0, 0, 0],
        clip_fraction_high=[1, 0, 0, 0, 0],
        dual_clip_fraction=[0, 0, 0, 0, 1],
    )


def test_gspo_by_hand() -> None:
    """Sequence 0: the geometric mean of 4 and 1 is 2, clipped at 1.2; sequence 1: of 0.5 and 2 it is 1."""
    tokens = by_hand([4, 1, 0.5, 2], [1, 1, -3, -3], [0, 0, 1, 1])
    check(
        lambda: LOSSES["gspo"](tokens, clip_low=0.2, clip_high=0.2),
        [-1.2, -1.2, 3, 3],
        clip_fraction_high=[1, 1, 0, 0],
        sequence_ratio_mean=[2, 2, 1, 1],
    )


def test_cispo_by_hand() -> None:
    """Weights 4 (capped at 3), 0.5, 1; log-probabilities -1 + log r."""
    tokens = by_hand([4, 0.5, 1], [1, -1, 2])
    new = tokens.logprobs.detach()
    expected = (-tensor(3, 0.5, 1) * tensor(1, -1, 2) * new).tolist()
    check(lambda: LOSSES["cispo"](tokens, clip_low=1.0, clip_high=2.0), expected, clip_fraction_high=[1, 0, 0])


def test_sapo_by_hand() -> None:
    """At r = 1 the sigmoid is 1/2: 2 / tau. At r = 1 + log 3, tau 1, it is 3/4: 3; the slope there is 4 * 3/16."""
    tokens = by_hand([1, 1, 1 + math.log(3)], [1, -1, 1])
    check(lambda: LOSSES["sapo"](tokens, tau_pos=1.0, tau_neg=2.0), [-2, 1, -3], soft_gate_mean=[1, 1, 0.75])


def test_reinforce_and_likelihood_by_hand() -> None:
    """Log-probabilities -1 + log 2 and -1."""
    tokens = by_hand([2, 1], [3, 1])
    check(lambda: LOSSES["reinforce"](tokens), [-6 * (-1 + math.log(2)), 1])
    selected = by_hand([2, 1], [1, 0])
    check(lambda: LOSSES["likelihood"](selected), [1 - math.log(2), 0], selected_fraction=[1, 0])


@pytest.mark.parametrize("name", SETTINGS)
def test_no_tokens_have_the_same_names(name: str) -> None:
    none = {key: values[:0] for key, values in random_numbers(0).items()}
    empty, full = (LOSSES[name](make_tokens(numbers), **SETTINGS[name]) for numbers in (none, random_numbers(0)))
    assert empty.losses.shape == (0,)
    assert list(empty.means) == list(full.means) and list(empty.maxima) == list(full.maxima)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_divergences(estimator: str) -> None:
    new, reference = (
        -3 + torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).unbind()
    found = kl_divergence(new, reference, estimator).numpy()
    d = (new - reference).numpy()
    expected = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[estimator]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (kl_divergence(new, new, estimator) == 0).all()
    if estimator != "k1":
        assert (found >= 0).all()
    assert kl_divergence(tensor(0.0), tensor(math.log(2)), estimator).item() == pytest.approx(
        {"k1": -math.log(2), "k2": math.log(2) ** 2 / 2, "k3": 1 - math.log(2)}[estimator]
    )


def test_divergences_estimate_the_same_number() -> None:
    """Over samples of a policy of 4 actions, k1 and k3 have the divergence as their mean; k2 nearly."""
    policy, other = torch.tensor([0.4, 0.3, 0.2, 0.1]).log(), torch.tensor([0.35, 0.3, 0.2, 0.15]).log()
    exact = (policy.exp() * (policy - other)).sum()
    for estimator, tolerance in (("k1", 1e-6), ("k3", 1e-6), ("k2", 0.1 * exact.item())):
        mean = (policy.exp() * kl_divergence(policy, other, estimator)).sum()
        assert mean.item() == pytest.approx(exact.item(), abs=tolerance)


def test_k3_keeps_its_digits_near_zero() -> None:
    other = torch.full((1,), 1e-4)
    assert k3_divergence(torch.zeros(1), other).item() == pytest.approx(5e-9, rel=2e-3)
