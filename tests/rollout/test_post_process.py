"""What is done to the rewards of a complete group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.config import OverlongConfig, RewardConfig
from areal_x.api.records import Trajectory, TrajectoryGroup, VersionSpan
from areal_x.api.reward_records import RewardError, RewardOutcome, ScoredSample
from areal_x.api.reward_shaping import overlong_penalty
from areal_x.rollout.post_process import PostProcessor, longest_turn


def group_of(rewards: list[float], lengths: list[int] | None = None) -> TrajectoryGroup:
    trajectories = []
    for index, length in enumerate(lengths or [3] * len(rewards)):
        ids, mask = np.arange(2 + length, dtype=np.int32), np.arange(2 + length) >= 2
        span = VersionSpan(2, 2 + length, 0)
        stop: Any = "length" if length > 8 else "stop"
        outcome = RewardOutcome("ok", rewards[index], {"part": 0.5})
        trajectories.append(
            Trajectory(ids, mask, np.zeros(2 + length, np.float32), [span], outcome, stop, prompt="p", completion="c")
        )
    return TrajectoryGroup(7, trajectories, np.array(rewards, np.float32), {"answer": "4"})


def test_scale_bias_and_clip_apply_in_this_order() -> None:
    group = group_of([0.0, 0.5, 1.0])
    PostProcessor(RewardConfig(scale=4.0, bias=-1.0, clip=[-0.5, 2.0]), 10)(group)
    assert group.rewards.tolist() == [-0.5, 1.0, 2.0]
    assert group.raw_rewards is not None and group.raw_rewards.tolist() == [0.0, 0.5, 1.0]


def test_the_overlong_penalty_worked_by_hand() -> None:
    lengths = [1, 6, 7, 8, 9, 10, 12]
    assert [overlong_penalty(length, 10, 4, 1.0) for length in lengths] == [0, 0, -0.25, -0.5, -0.75, -1, -1]
    assert overlong_penalty(99, 10, 0, 1.0) == 0
    group = group_of([1.0, 1.0, 1.0], [2, 8, 10])
    PostProcessor(RewardConfig(overlong=OverlongConfig(4, 0.5)), 10)(group)
    assert group.rewards.tolist() == [1.0, 0.75, 0.5]


@given(st.integers(1, 100), st.integers(1, 100), st.floats(0, 3), st.integers(0, 200))
def test_the_overlong_penalty_never_grows_with_length(limit: int, buffer: int, penalty: float, length: int) -> None:
    shorter, longer = (overlong_penalty(tokens, limit, min(buffer, limit), penalty) for tokens in (length, length + 1))
    assert -penalty <= longer <= shorter <= 0


def test_a_hook_sees_the_samples_and_gives_raw_and_processed_rewards() -> None:
    seen: list[ScoredSample] = []

    def hook(samples: list[ScoredSample]) -> tuple[list[float], Any]:
        seen.extend(samples)
        return [sample.reward + 10 for sample in samples], np.array([sample.reward * 3 for sample in samples])

    group = group_of([1.0, float("nan"), 2.0], [3, 3, 9])
    PostProcessor(RewardConfig(bias=1.0), 10, hook)(group)
    np.testing.assert_array_equal(group.rewards, np.float32([4.0, np.nan, 7.0]))
    np.testing.assert_array_equal(group.raw_rewards, np.float32([11.0, np.nan, 12.0]))
    first, second = seen
    assert (first.prompt, first.completion, first.prompt_ids, first.completion_ids) == ("p", "c", [0, 1], [2, 3, 4])
    assert (first.data, first.group_id, first.parts) == ({"answer": "4"}, 7, {"part": 0.5})
    assert (first.truncated, second.truncated, second.reward) == (False, True, 2.0)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], r"a list; return two lists: \(raw, processed\)"),
        (([1.0, 2.0], [1.0]), r"processed rewards of shape \(1,\) for 2 samples"),
        (([1.0, "x"], [1.0, 2.0]), "raw rewards that are no numbers"),
        (([1.0, 2.0], [1.0, float("nan")]), "processed rewards that are not finite"),
        (None, "a NoneType"),
    ],
)
def test_what_a_hook_may_not_return(returned: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        PostProcessor(RewardConfig(), 10, lambda samples: returned)(group_of([0.0, 1.0]))


def test_the_overlong_penalty_looks_at_the_longest_turn() -> None:
    spans = [VersionSpan(1, 4, 0), VersionSpan(4, 7, 1), VersionSpan(9, 11, 1)]
    ids = np.arange(12, dtype=np.int32)
    two_turns = Trajectory(ids, np.zeros(12, np.bool_), np.zeros(12, np.float32), spans)
    assert longest_turn(two_turns) == 6
    assert longest_turn(Trajectory(ids, np.zeros(12, np.bool_), np.zeros(12, np.float32), [])) == 0


def test_a_reward_that_float32_cannot_hold_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"processed reward is 1e\+40"):
        PostProcessor(RewardConfig(scale=1e40), 10)(group_of([1.0, 0.0]))


def test_a_hook_that_raises_is_named_with_its_line() -> None:
    def broken(samples: list[ScoredSample]) -> Any:
        raise KeyError("missing")

    with pytest.raises(RewardError, match=r"reward\.post_process: .*test_post_process\.py:\d+: KeyError: 'missing'"):
        PostProcessor(RewardConfig(), 10, broken)(group_of([0.0, 1.0]))
