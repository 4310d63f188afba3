"""The objective as a configuration says it: aggregation, KL, entropy, metrics, and functions of the user's own."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from loss_tokens import make_tokens, random_numbers, tensor

from areal_x.api.config import AlgorithmConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.train.objective.inputs import LossInputs, aggregation_shares
from areal_x.engine.train.objective.objective import Objective, ObjectiveTerms

GIVEN = random_numbers(0, size=60)


def inputs(algorithm: AlgorithmConfig, **changes: object) -> LossInputs:
    sequence = GIVEN["sequence"].astype(np.int64)
    scales, shares = aggregation_shares(
        np.ones(len(sequence), bool), sequence, algorithm.aggregation, algorithm.loss_length
    )
    made = LossInputs(
        behaviour=torch.from_numpy(GIVEN["behaviour"]),
        advantages=torch.from_numpy(GIVEN["advantages"]),
        sequence=torch.from_numpy(sequence),
        num_sequences=8,
        lag=torch.from_numpy(GIVEN["lag"]).int(),
        scales=None if scales is None else torch.from_numpy(scales),
        shares=None if shares is None else torch.from_numpy(shares),
        proximal=torch.from_numpy(GIVEN["proximal"]),
    )
    return dataclasses.replace(made, **changes)


def terms_of(algorithm: AlgorithmConfig, **changes: object) -> ObjectiveTerms:
    new = torch.from_numpy(GIVEN["new"]).requires_grad_()
    return Objective(algorithm)(new, torch.zeros_like(new), inputs(algorithm, **changes))


def token_losses() -> np.ndarray:
    ratio = np.exp(GIVEN["new"] - GIVEN["proximal"])
    surrogate = np.minimum(ratio * GIVEN["advantages"], np.clip(ratio, 0.8, 1.2) * GIVEN["advantages"])
    return -surrogate * np.minimum(np.exp(GIVEN["proximal"] - GIVEN["behaviour"]), 5)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_losses_become_one(aggregation: str) -> None:
    losses, sequence = token_losses(), GIVEN["sequence"]
    parts = [losses[sequence == number] for number in np.unique(sequence)]
    expected = {
        "token": losses.mean(),
        "sequence": np.mean([part.mean() for part in parts]),
        "constant": np.mean([part.sum() / 50 for part in parts]),
    }[aggregation]
    terms = terms_of(AlgorithmConfig(aggregation=aggregation, loss_length=50))
    assert abs((terms.loss / terms.share).item() - expected) <= 1e-12
    assert terms.share.item() == pytest.approx(60 if aggregation == "token" else len(parts), abs=1e-12)


def test_aggregation_by_hand() -> None:
    """Sequences of 1, 0 and 3 trained tokens among 2, 1 and 3."""
    mask = np.array([False, True, False, True, True, True])
    sequence = np.array([0, 0, 1, 2, 2, 2])
    assert aggregation_shares(mask, sequence, "token", None) == (None, None)
    scales, shares = aggregation_shares(mask, sequence, "constant", 10)
    assert scales is not None and shares is not None
    np.testing.assert_allclose(scales[mask], 0.1)
    np.testing.assert_allclose(shares[mask], [1, 1 / 3, 1 / 3, 1 / 3])
    assert shares[mask].sum() == pytest.approx(2)
    empty = np.zeros(0, np.int64)
    assert all(
        values is not None and len(values) == 0 for values in aggregation_shares(empty > 0, empty, "sequence", 1)
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_and_entropy_are_added(estimator: str) -> None:
    algorithm = AlgorithmConfig(kl_coefficient=0.1, kl_estimator=estimator, entropy_coefficient=0.01)
    new = torch.from_numpy(GIVEN["new"]).requires_grad_()
    entropy = torch.rand(60, dtype=torch.float64).requires_grad_()
    reference = new.detach() + 0.3
    terms = Objective(algorithm)(new, entropy, inputs(algorithm, reference=reference))
    divergence = {"k1": -0.3, "k2": 0.045, "k3": math.exp(0.3) - 1.3}[estimator]
    expected = token_losses().sum() + 60 * 0.1 * divergence - 0.01 * entropy.sum().item()
    assert terms.loss.item() == pytest.approx(expected, abs=1e-10)
    assert terms.policy_loss.item() == pytest.approx(token_losses().sum(), abs=1e-10)
    assert terms.sums["reference_kl"].item() == pytest.approx(60 * divergence)
    terms.loss.backward()
    assert entropy.grad is not None and (entropy.grad == -0.01).all()


def test_kl_in_the_reward_is_a_metric_of_the_loss_only() -> None:
    algorithm = AlgorithmConfig(kl_coefficient=0.1, kl_in="reward")
    reference = torch.from_numpy(GIVEN["new"]) + 0.3
    terms = terms_of(algorithm, reference=reference)
    assert terms.loss.item() == terms.policy_loss.item() and "reference_kl" in terms.sums
    assert "reference_kl" not in terms_of(algorithm).sums
    with pytest.raises(ValueError, match="needs the reference"):
        terms_of(AlgorithmConfig(kl_coefficient=0.1))


def test_without_a_correction_ratios_are_to_the_policy_that_sampled() -> None:
    terms = terms_of(AlgorithmConfig(correction="none", policy_loss="reinforce"))
    ratio = np.exp(GIVEN["new"] - GIVEN["behaviour"])
    assert terms.loss.item() == pytest.approx(-(ratio * GIVEN["advantages"] * GIVEN["new"]).sum(), abs=1e-10)
    assert not any("weight" in name or "masked" in name for name in [*terms.sums, *terms.stale_sums])


def test_without_a_proximal_policy_the_ratio_is_exactly_one() -> None:
    terms = terms_of(AlgorithmConfig(), proximal=None)
    assert terms.sums["ratio_mean"].item() == 60 and terms.maxima["ratio_max"].item() == 1
    assert terms.sums["clip_fraction_low"] == terms.sums["clip_fraction_high"] == 0


def test_metrics_tell_the_newest_weights_apart() -> None:
    terms = terms_of(AlgorithmConfig(correction="icepop", correction_kwargs={"low": 0.8, "high": 1.3}))
    drift = GIVEN["proximal"] - GIVEN["behaviour"]
    fresh = GIVEN["lag"] == 0
    masked = (np.exp(drift) < 0.8) | (np.exp(drift) > 1.3)
    divergence = np.exp(drift) - 1 - drift
    expected = {
        "mismatch_mean": np.abs(drift)[fresh].sum(),
        "mismatch_kl": divergence[fresh].sum(),
        "mismatch_max": np.abs(drift)[fresh].max(),
        "behaviour_difference_mean": np.abs(drift).sum(),
        "behaviour_difference_max": np.abs(drift).max(),
        "behaviour_kl": divergence.sum(),
        "behaviour_masked_fraction": masked.sum(),
        "behaviour_weight_mean": np.exp(drift)[~masked].sum(),
        "stale_masked_fraction": masked[~fresh].sum(),
        "stale_weight_mean": np.exp(drift)[~masked & ~fresh].sum(),
        "stale_fraction": (~fresh).sum(),
    }
    found = {**terms.sums, **terms.fresh_sums, **terms.stale_sums, **terms.maxima, **terms.fresh_maxima}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=1e-9), name
    assert terms.num_fresh.item() == fresh.sum()


def test_a_correction_of_the_whole_batch_is_looked_up() -> None:
    objective = Objective(AlgorithmConfig(correction="m2po"))
    assert objective.corrects_whole_batch and not Objective(AlgorithmConfig()).corrects_whole_batch
    given = inputs(AlgorithmConfig())
    positions = torch.arange(10, 40)
    spread = given.with_correction(objective.correction_of(given.at(positions)), positions)
    assert spread.correction is not None and (spread.correction.weights[:10] == 0).all()
    part = torch.arange(20, 25)
    new = torch.from_numpy(GIVEN["new"]).requires_grad_()
    terms = objective(new[part], torch.zeros(5, dtype=torch.float64), spread.at(part))
    assert terms.sums["behaviour_masked_fraction"] == (spread.correction.weights[part] == 0).sum()
    assert "behaviour_second_moment" in terms.sums


OWN = """
import torch
from areal_x.engine.train.objective.tokens import Correction, TokenLoss

def half(tokens, *, clip_high, scale=1.0):
    losses = -scale * tokens.advantages * tokens.ratio.clamp(max=1 + clip_high)
    means = {"own_mean": tokens.sequence_mean(tokens.advantages)}
    return TokenLoss(losses, means, {"own_max": tokens.advantages.abs()})

def twice(tokens):
    return Correction(torch.full_like(tokens.drift, 2.0))

def number(tokens):
    return tokens.advantages.sum()

def summed(tokens):
    return TokenLoss(tokens.logprobs, {"sum": tokens.advantages.sum()})
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own_objective.py"
    path.write_text(OWN)
    return str(path)


def test_functions_of_the_user_s_own(own: str) -> None:
    algorithm = AlgorithmConfig(
        policy_loss=f"{own}:half",
        policy_loss_kwargs={"scale": 3.0},
        clip_high=0.1,
        correction=f"{own}:twice",
    )
    assert Objective(algorithm).corrects_whole_batch
    terms = terms_of(algorithm)
    ratio = np.minimum(np.exp(GIVEN["new"] - GIVEN["proximal"]), 1.1)
    assert terms.loss.item() == pytest.approx(-6 * (ratio * GIVEN["advantages"]).sum(), abs=1e-9)
    assert terms.sums["own_mean"].item() == pytest.approx(GIVEN["advantages"].sum(), abs=1e-9)
    assert terms.maxima["own_max"].item() == pytest.approx(np.abs(GIVEN["advantages"]).max())
    assert terms.sums["behaviour_weight_mean"].item() == 120


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy_loss": "ppo"}, r"algorithm\.policy_loss='ppo'.*clip, reinforce"),
        ({"policy_loss_kwargs": {"tau": 1}}, r"algorithm\.policy_loss_kwargs\.tau: clip has no such argument"),
        (
            {"policy_loss": "sapo", "policy_loss_kwargs": {"tau": 1}},
            r"policy_loss_kwargs\.tau: sapo has no such argument; it takes tau_neg, tau_pos",
        ),
        (
            {"correction": "tis", "correction_kwargs": {"cap": 1}},
            r"algorithm\.correction_kwargs\.cap: tis has no such argument; it takes high, only_stale",
        ),
        ({"correction": "none", "correction_kwargs": {"high": 1}}, "correction=none takes none"),
        ({"aggregation": "constant"}, r"algorithm\.loss_length"),
        ({"policy_loss": "OWN:nothing"}, "nothing"),
        ({"policy_loss": "OWN:number"}, "returned a Tensor; it must return a TokenLoss"),
        ({"policy_loss": "OWN:summed"}, r"sum of 0 tokens is \[\]; it must be a tensor of one value each"),
        ({"correction": "OWN:number"}, "returned a Tensor; it must return a Correction"),
    ],
)
def test_bad_settings_are_named(own: str, fields: dict[str, object], message: str) -> None:
    fields = {name: value.replace("OWN", own) if isinstance(value, str) else value for name, value in fields.items()}
    with pytest.raises(ConfigError, match=message):
        Objective(AlgorithmConfig(**fields))


def test_sequence_sums_are_without_gradient() -> None:
    tokens = make_tokens(
        {name: values[:5] for name, values in GIVEN.items()} | {"sequence": np.array([1, 1, 3, 3, 3.0])}
    )
    assert tokens.sequence_sum(tensor(1, 2, 3, 4, 5)).tolist() == [3, 3, 12, 12, 12]
    assert tokens.sequence_mean(tensor(1, 2, 3, 4, 5)).tolist() == [1.5, 1.5, 4, 4, 4]
    assert not tokens.sequence_mean(tokens.logprobs).requires_grad
