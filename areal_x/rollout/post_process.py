"""Post-processing: what is done to the rewards of a complete group before its advantages.

hook(samples) → scale → bias → overlong penalty → clip. The rewards as they were given are kept beside the result.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from areal_x.api.config import RewardConfig
from areal_x.api.records import Trajectory, TrajectoryGroup
from areal_x.api.reward_records import LARGEST_REWARD, RewardError, ScoredSample
from areal_x.api.reward_shaping import overlong_penalty

__all__ = ["PostProcessHook", "PostProcessor", "longest_turn", "scored_samples"]

PostProcessHook = Callable[[list[ScoredSample]], tuple[Sequence[float], Sequence[float]]]


def scored_samples(group: TrajectoryGroup) -> list[ScoredSample]:
    """The samples of a group that have a reward, as a hook sees them."""
    return [
        _scored_sample(group, trajectory, float(reward))
        for trajectory, reward in zip(group.trajectories, group.rewards, strict=True)
        if not np.isnan(reward)
    ]


def _scored_sample(group: TrajectoryGroup, trajectory: Trajectory, reward: float) -> ScoredSample:
    ids = trajectory.input_ids.tolist()
    start = min((span.start for span in trajectory.version_spans), default=len(ids))
    return ScoredSample(
        prompt=trajectory.prompt,
        completion=trajectory.completion,
        prompt_ids=ids[:start],
        completion_ids=ids[start:],
        data=dict(group.item),
        truncated=trajectory.stop_reason == "length",
        reward=reward,
        group_id=group.group_id,
        parts={} if trajectory.outcome is None else dict(trajectory.outcome.parts),
    )


def longest_turn(trajectory: Trajectory) -> int:
    """Sampled tokens of a trajectory's longest turn: ``max_new_tokens`` bounds a turn, not all of them."""
    is_sampled = np.zeros(len(trajectory.input_ids) + 2, dtype=np.int8)
    for span in trajectory.version_spans:
        is_sampled[span.start + 1 : span.end + 1] = 1
    edges = np.flatnonzero(np.diff(is_sampled))
    return int(np.max(edges[1::2] - edges[::2], initial=0))


@dataclass(frozen=True, slots=True)
class PostProcessor:
    """Changes the rewards of a complete group as the configuration says.

    Args:
        config: ``scale``, ``bias``, ``overlong`` and ``clip`` of the rewards.
        max_tokens: length at which completions are cut.
        hook: called first, with the samples that have a reward; gives their raw rewards, which are logged, and those to
            go on with.
    """

    config: RewardConfig
    max_tokens: int
    hook: PostProcessHook | None = None

    def __call__(self, group: TrajectoryGroup) -> None:
        """Set the group's ``rewards``, and ``raw_rewards`` to what they were.

        Raises:
            RewardError: the hook returned something else than two lists of finite numbers, one for each sample.
        """
        scored = ~np.isnan(group.rewards)
        raw = group.rewards.astype(np.float64)
        processed = raw.copy()
        if self.hook is not None and scored.any():
            raw[scored], processed[scored] = self._call_hook(self.hook, group)
        processed = processed * self.config.scale + self.config.bias
        overlong = self.config.overlong
        if buffer := overlong.buffer_of(self.max_tokens):
            bounds = self.max_tokens, buffer, overlong.penalty
            processed += [overlong_penalty(longest_turn(trajectory), *bounds) for trajectory in group.trajectories]
        if self.config.clip is not None:
            lowest, highest = self.config.clip
            processed = np.clip(processed, lowest, highest)
        too_large = np.abs(processed[scored]) > LARGEST_REWARD
        if too_large.any():
            raise RewardError(f"a processed reward is {processed[scored][too_large][0]:g}, too large for float32")
        group.raw_rewards, group.rewards = raw.astype(np.float32), processed.astype(np.float32)

    def _call_hook(self, hook: PostProcessHook, group: TrajectoryGroup) -> list[npt.NDArray[np.float64]]:
        samples = scored_samples(group)
        try:
            returned = hook(samples)
        except Exception as error:  # the boundary to the user's hook
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}:{place.lineno}"
            raise RewardError(f"reward.post_process: {where}: {type(error).__name__}: {error}") from error
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise RewardError(
                f"reward.post_process returned a {type(returned).__name__}; return two lists: (raw, processed)"
            )
        return [_checked(values, name, samples) for values, name in zip(returned, ("raw", "processed"), strict=True)]


def _checked(values: Any, name: str, samples: list[ScoredSample]) -> npt.NDArray[np.float64]:
    try:
        rewards = np.asarray(values.tolist() if hasattr(values, "tolist") else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward.post_process returned {name} rewards that are no numbers: {error}") from error
    if rewards.shape != (len(samples),):
        raise RewardError(
            f"reward.post_process returned {name} rewards of shape {rewards.shape} for {len(samples)} samples"
        )
    if not np.isfinite(rewards).all():
        raise RewardError(f"reward.post_process returned {name} rewards that are not finite: {rewards.tolist()}")
    return rewards
