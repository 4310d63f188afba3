"""Filters of complete groups by name: what they keep, why they reject, and how arguments are bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_x.api.errors import ConfigError
from areal_x.api.records import Trajectory, TrajectoryGroup
from areal_x.api.reward_records import RewardOutcome
from areal_x.rollout.filters import load_group_filter

NAN = float("nan")


def group(rewards: list[float], raw: list[float] | None = None, **parts: list[float | None]) -> TrajectoryGroup:
    """A group with these rewards; ``parts`` are what the reward reported beside them, None where it did not."""
    trajectories = []
    for index, reward in enumerate(rewards):
        found = {name: value for name, values in parts.items() if (value := values[index]) is not None}
        outcome = RewardOutcome("ok", reward, parts=found)
        ones = np.ones(2, dtype=np.int32)
        trajectories.append(Trajectory(ones, ones.astype(bool), ones.astype(np.float32), [], outcome))
    raw_rewards = None if raw is None else np.array(raw, np.float32)
    return TrajectoryGroup(0, trajectories, np.array(rewards, np.float32), raw_rewards=raw_rewards)


@pytest.mark.parametrize(
    ("name", "kwargs", "given", "expected"),
    [
        ("nonzero_variance", {}, group([0, 1, 0]), True),
        ("nonzero_variance", {}, group([1, 1, 1]), "same_reward"),
        ("nonzero_variance", {}, group([1, NAN, 1]), "same_reward"),
        ("nonzero_variance", {}, group([NAN, NAN]), "no_value"),
        ("nonzero_variance", {}, group([0.1, 0.1 + 1e-7]), True),
        # A penalty for length makes samples differ that are all wrong.
        ("nonzero_variance", {}, group([0.0, -0.5], raw=[0, 0]), True),
        ("nonzero_variance", {"key": "reward"}, group([0.0, -0.5], raw=[0, 0]), "same_reward"),
        ("nonzero_variance", {"key": "reward"}, group([0.0, -0.5]), True),
        ("nonzero_variance", {"key": "accuracy"}, group([0.0, -0.5], accuracy=[0, 0]), "same_reward"),
        ("nonzero_variance", {"key": "accuracy"}, group([1, 1], accuracy=[0, 1]), True),
        ("nonzero_variance", {"key": "accuracy"}, group([1, NAN], accuracy=[0, 1]), "same_reward"),
        ("nonzero_variance", {"key": "accuracy"}, group([1, 0, 1], accuracy=[1, None, 1]), "same_reward"),
        ("nonzero_variance", {"key": "accurcy"}, group([1, 0], accuracy=[1, 0]), "no_value"),
        ("reward_range", {"low": 0.2, "high": 0.8}, group([0, 1]), True),
        ("reward_range", {"low": 0.2, "high": 0.8}, group([0, 0, NAN]), "reward_too_low"),
        ("reward_range", {"low": 0.2, "high": 0.8}, group([1, 1]), "reward_too_high"),
        ("reward_range", {"low": 0.5}, group([0, 1]), "reward_too_low"),
        ("reward_range", {"low": 0.5, "inclusive": True}, group([0, 1]), True),
        ("reward_range", {"high": 0.5}, group([0, 1]), "reward_too_high"),
        ("reward_range", {"high": 0.5, "inclusive": True}, group([0, 1]), True),
        ("reward_range", {"low": 0, "key": "accuracy"}, group([5, 5], accuracy=[0, 0]), "reward_too_low"),
    ],
)
def test_what_a_filter_says(name: str, kwargs: dict[str, Any], given: TrajectoryGroup, expected: bool | str) -> None:
    assert load_group_filter(name, kwargs, "rollout.filter")(given) == expected


def test_several_rewards_are_known_by_name() -> None:
    given = group([1, 1])
    for trajectory, value in zip(given.trajectories, (0.25, 0.75), strict=True):
        assert trajectory.outcome is not None
        trajectory.outcome.values = {"style": value}
    assert load_group_filter("nonzero_variance", {"key": "style"}, "rollout.filter")(given) is True


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("nonzero_varience", {}, "must be one of nonzero_variance, reward_range"),
        ("nonzero_variance", {"low": 0}, r"rollout\.filter_kwargs\.low: .*it takes key"),
        ("reward_range", {"lo": 0}, r"filter_kwargs\.lo: .*it takes high, inclusive, key, low"),
        ("mine.py:keep", {"more": 1}, r"filter_kwargs\.more: .*it takes share"),
        ("mine.py:nothing", {}, "nothing"),
        ("mine.py:NUMBER", {}, "is not a function"),
    ],
)
def test_a_filter_that_cannot_be_bound(
    name: str, kwargs: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("NUMBER = 3\n\ndef keep(group, share=0.5):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=expected):
        load_group_filter(name, kwargs, "rollout.filter")


def test_arguments_reach_a_users_filter(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def keep(group, **kwargs):\n    return str(kwargs)\n")
    bound = load_group_filter(f"{tmp_path}/mine.py:keep", {"share": 0.25}, "rollout.filter")
    assert bound(group([1, 0])) == "{'share': 0.25}"
