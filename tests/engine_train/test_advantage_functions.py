"""Advantage functions against loops written from their papers, and on cases worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.api.advantage_api import Advantages, RewardedSamples
from areal_x.api.config import AlgorithmConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.train.advantages import (
    gae,
    group,
    kl_estimate,
    load_advantage,
    raft,
    reinforce_pp,
    reinforce_pp_baseline,
)


@st.composite
def made_samples(draw: st.DrawFn) -> RewardedSamples:
    """Samples of several turns, some tokens too old to be trained, some samples masked, groups of any size."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number = draw(st.integers(1, 12))
    lengths = generator.integers(1, draw(st.sampled_from([3, 40, 300])), number).astype(np.int32)
    rewards = generator.choice([0.0, 0.5, 1.0, -2.0], number).astype(np.float32)
    rewards[generator.random(number) < 0.2] = np.nan
    sampled = generator.random(int(lengths.sum())) < draw(st.sampled_from([0.0, 0.5, 0.9]))
    trained = sampled & (generator.random(len(sampled)) < 0.8) & ~np.repeat(np.isnan(rewards), lengths)
    penalties = np.where(sampled, generator.normal(0, 0.1, len(sampled)), 0).astype(np.float32)
    return RewardedSamples(
        rewards=rewards,
        group_ids=generator.integers(0, 4, number),
        lengths=lengths,
        sampled=sampled,
        trained=trained,
        kl_penalties=penalties if draw(st.booleans()) else None,
        values=generator.normal(0, 1, len(sampled)).astype(np.float32),
    )


def steps_of(samples: RewardedSamples) -> list[tuple[float, list[int]]]:
    """The reward of each sample, and where its sampled tokens lie."""
    found, start = [], 0
    for reward, length in zip(samples.rewards, samples.lengths, strict=True):
        found.append((float(reward), [k for k in range(start, start + length) if samples.sampled[k]]))
        start += int(length)
    return found


def token_reward(samples: RewardedSamples, reward: float, places: list[int], step: int) -> float:
    penalty = 0.0 if samples.kl_penalties is None else float(samples.kl_penalties[places[step]])
    return (reward if step == len(places) - 1 and not np.isnan(reward) else 0.0) - penalty


def whitened(values: np.ndarray[Any, Any], trained: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if not trained.any():
        return np.zeros_like(values)
    return (values - values[trained].mean()) / (values[trained].std() + 1e-8)


def check_tokens(found: Advantages, expected: np.ndarray[Any, Any], samples: RewardedSamples) -> None:
    assert found.values.dtype == np.float32 and found.values.shape == samples.sampled.shape
    spread = expected[samples.trained].std() if samples.trained.any() else 0.0
    # Whitening of values that are equal but for rounding has no right answer.
    if spread > 1e-6:
        np.testing.assert_allclose(found.values[samples.trained], expected[samples.trained], rtol=1e-6, atol=1e-6)


@given(made_samples(), st.sampled_from([1.0, 0.97]), st.sampled_from([1.0, 0.9, 0.0]))
@settings(max_examples=80, deadline=None)
def test_gae_is_that_of_its_equation(samples: RewardedSamples, discount: float, gae_lambda: float) -> None:
    assert samples.values is not None
    advantages, returns = np.zeros(len(samples.sampled)), np.zeros(len(samples.sampled))
    for reward, places in steps_of(samples):
        later, next_value = 0.0, 0.0
        for step in reversed(range(len(places))):
            value = float(samples.values[places[step]])
            error = token_reward(samples, reward, places, step) + discount * next_value - value
            later, next_value = error + discount * gae_lambda * later, value
            advantages[places[step]], returns[places[step]] = later, later + value
    plain = gae(samples, discount, gae_lambda, whiten=False)
    np.testing.assert_allclose(plain.values, advantages, rtol=1e-6, atol=1e-6)
    found = gae(samples, discount, gae_lambda)
    check_tokens(found, whitened(advantages, samples.trained), samples)
    assert found.returns is not None and found.returns.dtype == np.float32
    np.testing.assert_allclose(found.returns, returns, rtol=1e-6, atol=1e-6)


@given(made_samples(), st.sampled_from([1.0, 0.9]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_reinforce_pp_is_that_of_its_equation(samples: RewardedSamples, discount: float, baseline: bool) -> None:
    steps = steps_of(samples)
    rewards = np.array([reward for reward, _ in steps])
    if baseline:
        for number in range(len(rewards)):
            mates = samples.rewards[(samples.group_ids == samples.group_ids[number]) & ~np.isnan(samples.rewards)]
            rewards[number] -= mates.astype(np.float64).mean() if len(mates) else 0.0
    expected = np.zeros(len(samples.sampled))
    for reward, (_, places) in zip(rewards, steps, strict=True):
        for step in range(len(places)):
            expected[places[step]] = sum(
                discount ** (later - step) * token_reward(samples, reward, places, later)
                for later in range(step, len(places))
            )
    function = reinforce_pp_baseline if baseline else reinforce_pp
    check_tokens(function(samples, discount), whitened(expected, samples.trained), samples)


@given(made_samples())
@settings(deadline=None)
def test_raft_learns_the_best_of_each_group_that_differs(samples: RewardedSamples) -> None:
    rewards = samples.penalized_rewards
    expected = []
    for number, reward in enumerate(rewards):
        mates = [r for r, g in zip(rewards, samples.group_ids, strict=True) if g == samples.group_ids[number]]
        mates = [mate for mate in mates if not np.isnan(mate)]
        expected.append(float(not np.isnan(reward) and reward == max(mates) > min(mates)))
    assert raft(samples).values.tolist() == expected
    above = raft(samples, threshold=0.4).values
    assert above.tolist() == [float(reward > 0.4) for reward in rewards]


@given(made_samples())
@settings(deadline=None)
def test_penalties_are_taken_from_the_reward_before_the_baseline(samples: RewardedSamples) -> None:
    sums, start = [], 0
    for length in samples.lengths:
        taken = (
            0.0 if samples.kl_penalties is None else samples.kl_penalties[start : start + length].astype(float).sum()
        )
        sums.append(float(taken))
        start += int(length)
    rewards = samples.rewards.astype(np.float64) - sums
    expected = np.zeros(len(rewards))
    for number in range(len(rewards)):
        same = (samples.group_ids == samples.group_ids[number]) & ~np.isnan(rewards)
        same[number] = False
        expected[number] = (
            0.0 if np.isnan(rewards[number]) or not same.any() else rewards[number] - rewards[same].mean()
        )
    np.testing.assert_allclose(group(samples, "leave_one_out", "none").values, expected, rtol=1e-5, atol=1e-5)


def two_samples() -> RewardedSamples:
    """A sample of two turns, p a b f c, whose c is too old, and one of a single token, p d; rewards 1 and 0."""
    return RewardedSamples(
        rewards=np.array([1.0, 0.0], np.float32),
        group_ids=np.array([7, 7]),
        lengths=np.array([5, 2], np.int32),
        sampled=np.array([0, 1, 1, 0, 1, 0, 1], bool),
        trained=np.array([0, 1, 1, 0, 0, 0, 1], bool),
        values=np.array([9, 0.5, 0.25, 9, 0.75, 9, 0.5], np.float32),
    )


def test_gae_worked_by_hand() -> None:
    # c: 1 - 0.75 = 0.25; b: 0.75 - 0.25 + 0.25 / 2 = 0.625; a: 0.25 - 0.5 + 0.625 / 2 = 0.0625; d: 0 - 0.5
    plain = gae(two_samples(), 1.0, 0.5, whiten=False)
    assert plain.values.tolist() == [0, 0.0625, 0.625, 0, 0.25, 0, -0.5]
    assert plain.returns is not None
    assert plain.returns.tolist() == [0, 0.5625, 0.875, 0, 1.0, 0, 0.0]
    trained = np.array([0.0625, 0.625, -0.5])
    expected = (trained - trained.mean()) / trained.std()
    assert gae(two_samples(), 1.0, 0.5).values[[1, 2, 6]].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_reinforce_pp_worked_by_hand() -> None:
    # Returns 1, 1 and 0 of the trained a, b and d: mean 2/3, deviation sqrt(2)/3.
    for function in (reinforce_pp, reinforce_pp_baseline):
        found = function(two_samples()).values[[1, 2, 6]]
        assert found.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, -(2**0.5)], rel=1e-6)


def test_equal_rewards_teach_nothing() -> None:
    samples = two_samples()
    samples.rewards[:] = 0.3
    for function in (reinforce_pp, reinforce_pp_baseline, raft):
        found = function(samples).values
        assert not found[samples.trained if len(found) == 7 else slice(None)].any()


def test_estimates_of_the_divergence() -> None:
    policy, reference = np.array([-1.0, -2.0]), np.array([-1.5, -2.0])
    assert kl_estimate(policy, reference, "k1").tolist() == [0.5, 0.0]
    assert kl_estimate(policy, reference, "k2").tolist() == [0.125, 0.0]
    assert kl_estimate(policy, reference, "k3") == pytest.approx([np.exp(-0.5) - 0.5, 0.0])
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(policy, reference, "k4")


def test_functions_get_the_fields_and_arguments_that_they_name() -> None:
    samples = two_samples()
    algorithm = AlgorithmConfig(advantage="gae", gae_lambda=0.5, advantage_kwargs={"whiten": False})
    found = load_advantage(algorithm)(samples)
    assert isinstance(found, Advantages)
    assert found.values.tolist() == gae(samples, 1.0, 0.5, whiten=False).values.tolist()
    found = load_advantage(AlgorithmConfig(baseline="none", scale_by="none"))(samples)
    assert isinstance(found, Advantages) and found.values.tolist() == [1.0, 0.0]


OWN = """
import numpy as np

def above(samples, baseline, threshold, power: float = 1.0):
    assert baseline == "group_mean"
    return np.where(samples.rewards > threshold, 1.0, -1.0) * power

not_a_function = 3
"""


def test_a_function_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "own_advantage.py"
    file.write_text(OWN)
    kwargs: dict[str, Any] = {"threshold": 0.5, "power": 2.0}
    function = load_advantage(AlgorithmConfig(advantage=f"{file}:above", advantage_kwargs=kwargs))
    assert np.asarray(function(two_samples())).tolist() == [2.0, -2.0]


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("gaee", {}, "algorithm.advantage='gaee': must be one of group, gae"),
        ("group", {"epsilon": 1}, "advantage_kwargs.epsilon: group has no such argument; it takes eps"),
        ("gae", {"gae_lambda": 1}, "advantage_kwargs.gae_lambda: is a field of its own; set algorithm.gae_lambda"),
        ("raft", {"samples": 1}, "advantage_kwargs.samples: raft has no such argument; it takes threshold"),
        ("{file}:above", {}, "needs the argument threshold; set algorithm.advantage_kwargs.threshold"),
        ("{file}:above", {"threshold": 1, "treshold": 2}, "no such argument; it takes power, threshold"),
        ("{file}:not_a_function", {}, "is not a function"),
        ("{file}:missing", {}, "missing"),
    ],
)
def test_a_wrong_function_or_argument_is_named(name: str, kwargs: Any, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong_advantage.py"
    file.write_text(OWN)
    with pytest.raises(ConfigError) as caught:
        load_advantage(AlgorithmConfig(advantage=name.format(file=file), advantage_kwargs=kwargs))
    assert expected in str(caught.value)


def test_gae_without_a_critic_is_refused() -> None:
    samples = two_samples()
    with pytest.raises(ConfigError, match="critic"):
        gae(RewardedSamples(samples.rewards, samples.group_ids, samples.lengths, samples.sampled, samples.trained))
