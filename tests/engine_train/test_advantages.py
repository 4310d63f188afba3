"""Group advantages and the learning-rate schedule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.config import BASELINES, SCALES
from areal_x.api.errors import ConfigError
from areal_x.engine.train.advantages import group_advantages
from areal_x.engine.train.schedule import SCHEDULES, scheduled_learning_rate

SCALE = {True: "group_std", False: "none"}
samples = st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(0, 5)), min_size=1, max_size=40)


@given(samples, st.booleans())
def test_each_group_is_as_if_alone(pairs: list[tuple[float, int]], normalize: bool) -> None:
    rewards = np.array([reward for reward, _ in pairs])
    groups = np.array([group for _, group in pairs])
    advantages = group_advantages(rewards, groups, scale_by=SCALE[normalize])
    assert advantages.dtype == np.float32 and np.isfinite(advantages).all()
    for group in set(groups.tolist()):
        mine = rewards[groups == group]
        centred = mine - mine.mean()
        expected = centred / (mine.std() + 1e-6) if normalize else centred
        np.testing.assert_allclose(advantages[groups == group], expected, rtol=1e-4, atol=2e-5)


@given(st.floats(-1e6, 1e6), st.integers(1, 9), st.booleans())
def test_equal_rewards_give_exactly_zero(reward: float, size: int, normalize: bool) -> None:
    assert (group_advantages(np.full(size, reward), np.zeros(size, dtype=int), scale_by=SCALE[normalize]) == 0).all()


@given(samples, st.randoms(use_true_random=False))
def test_order_does_not_matter(pairs: list[tuple[float, int]], random) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)
    rewards, groups = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    np.testing.assert_allclose(
        group_advantages(rewards, groups)[order], group_advantages(rewards[order], groups[order]), rtol=1e-4, atol=2e-5
    )


def test_worked_by_hand() -> None:
    got = group_advantages([1, 0, 0, 1, 5, 3, 3], [7, 7, 2, 7, 9, 2, 2], eps=0.0 + 1e-12)
    third = (2 / 9) ** 0.5
    np.testing.assert_allclose(
        got, [1 / 3 / third, -2 / 3 / third, -2 / 2**0.5, 1 / 3 / third, 0, 1 / 2**0.5, 1 / 2**0.5], rtol=1e-6
    )


@given(samples, st.lists(st.integers(0, 39)), st.booleans())
def test_masked_samples_are_as_if_absent(pairs: list[tuple[float, int]], masked: list[int], normalize: bool) -> None:
    rewards, groups = np.array([p[0] for p in pairs], dtype=np.float64), np.array([p[1] for p in pairs])
    is_masked = np.isin(np.arange(len(pairs)), masked)
    got = group_advantages(np.where(is_masked, np.nan, rewards), groups, scale_by=SCALE[normalize])
    assert (got[is_masked] == 0).all()
    others = group_advantages(rewards[~is_masked], groups[~is_masked], scale_by=SCALE[normalize])
    np.testing.assert_array_equal(got[~is_masked], others)


@given(samples)
def test_leaving_one_out_is_the_mean_of_the_others(pairs: list[tuple[float, int]]) -> None:
    rewards, groups = np.array([p[0] for p in pairs], dtype=np.float64), np.array([p[1] for p in pairs])
    got = group_advantages(rewards, groups, "leave_one_out", "none")
    for index, (reward, group) in enumerate(pairs):
        others = np.delete(rewards, index)[np.delete(groups, index) == group]
        expected = reward - others.mean() if len(others) else 0.0
        assert got[index] == pytest.approx(expected, rel=1e-4, abs=2e-5)


@given(samples)
def test_baselines_of_the_batch_look_at_all_rewards(pairs: list[tuple[float, int]]) -> None:
    rewards, groups = np.array([p[0] for p in pairs], dtype=np.float64), np.array([p[1] for p in pairs])
    np.testing.assert_allclose(
        group_advantages(rewards, groups, "batch_mean", "none"), rewards - rewards.mean(), rtol=1e-4, atol=2e-5
    )
    np.testing.assert_allclose(group_advantages(rewards, groups, "none", "none"), rewards, rtol=1e-6)
    if rewards.std() > 1e-3:
        scaled = group_advantages(rewards, groups, "none", "batch_std")
        np.testing.assert_allclose(scaled, rewards / rewards.std(), rtol=1e-2, atol=2e-5)


@given(samples, st.sampled_from(BASELINES), st.sampled_from(SCALES))
def test_no_group_however_small_gives_huge_advantages(
    pairs: list[tuple[float, int]], baseline: str, scale_by: str
) -> None:
    rewards, groups = np.array([round(p[0], 2) for p in pairs]), np.array([p[1] for p in pairs])
    advantages = group_advantages(rewards, groups, baseline, scale_by)
    assert np.isfinite(advantages).all() and (np.abs(advantages) <= 1e5).all()
    lonely = np.bincount(groups)[groups] == 1
    if baseline in ("group_mean", "leave_one_out"):
        assert (advantages[lonely] == 0).all()


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="baseline='median'"):
        group_advantages([1.0], [0], "median")


def test_impossible_rewards_are_refused() -> None:
    with pytest.raises(ValueError, match="reward 1 is infinite"):
        group_advantages([0.0, float("inf")], [0, 0])
    with pytest.raises(ValueError, match="one length"):
        group_advantages([0.0, 1.0], [0])


def test_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        return [
            scheduled_learning_rate(step, peak=1.0, schedule=schedule, warmup_steps=2, total_steps=6, min_ratio=0.2)
            for step in range(8)
        ]

    assert rates("constant") == [0.5, 1, 1, 1, 1, 1, 1, 1]
    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.8828, 0.6, 0.3172, 0.2, 0.2], abs=1e-4)
    with pytest.raises(ConfigError, match="lr_schedule: 'step'"):
        scheduled_learning_rate(0, peak=1.0, schedule="step", warmup_steps=0, total_steps=1)


@given(st.sampled_from(SCHEDULES), st.integers(0, 20), st.integers(1, 50), st.integers(0, 100), st.floats(0, 1))
def test_rates_stay_between_zero_and_peak(schedule: str, warmup: int, total: int, step: int, ratio: float) -> None:
    rate = scheduled_learning_rate(
        step, peak=3e-4, schedule=schedule, warmup_steps=warmup, total_steps=total, min_ratio=ratio
    )
    assert 0 <= rate <= 3e-4 * (1 + 1e-12)
    if step >= warmup:
        assert rate >= 3e-4 * ratio * (1 - 1e-12)
