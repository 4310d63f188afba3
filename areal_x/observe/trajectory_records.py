"""A trajectory as one JSON object for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from areal_x.api.records import Trajectory

__all__ = ["mask_runs", "trajectory_record"]


def mask_runs(mask: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Run-length form of a mask: ``[start, end)`` of each run of true values."""
    padded = np.concatenate([[False], mask, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return edges.reshape(-1, 2).tolist()


def trajectory_record(
    trajectory: Trajectory,
    tokens: Sequence[str],
    *,
    step: int,
    version: int,
    reward: float | None,
    advantage: float | None,
    trained_mask: npt.NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """One line of ``trajectories.jsonl``.

    ``tokens``: the text of each of the T tokens. ``version``: that of the weights being trained; ``lag`` is its
    distance from the oldest sampled token. ``reward``: the final scalar, None if scoring failed. ``trained_mask`` bool
    [T]: true at tokens in the loss; default the trajectory's own mask. In the record, ``version_spans`` cover every
    sampled token and ``mask`` every trained one, so a token in a span but not in the mask was over age. ``logprobs``
    are those of the sampled tokens in order, in thousandths of a nat, as integers.

    Raises:
        ValueError: ``tokens`` or ``trained_mask`` is not as long as the trajectory.
    """
    length = len(trajectory.input_ids)
    mask = trajectory.loss_mask if trained_mask is None else trained_mask
    if len(tokens) != length or len(mask) != length:
        raise ValueError(f"a trajectory of {length} tokens got {len(tokens)} token texts and a mask of {len(mask)}")
    outcome = trajectory.outcome
    reason = outcome.metadata.get("reason") if outcome is not None else None
    if reason is None and outcome is not None and outcome.error:
        reason = outcome.error.strip().rsplit("\n", 1)[-1][:300]
    oldest = trajectory.oldest_version
    sampled = trajectory.logprobs[trajectory.loss_mask]
    return {
        "step": int(step),
        "version": int(version),
        "group_id": int(trajectory.group_id),
        "episode_id": trajectory.episode_id,
        "reward": _rounded(reward),
        "advantage": _rounded(advantage),
        "status": "not_scored" if outcome is None else outcome.status,
        "reason": None if reason is None else str(reason),
        "parts": {} if outcome is None else {name: _rounded(value) for name, value in outcome.parts.items()},
        "stop_reason": trajectory.stop_reason,
        "num_turns": int(trajectory.num_turns),
        "lag": max(0, int(version) - oldest) if trajectory.version_spans else 0,
        "prompt": trajectory.prompt,
        "completion": trajectory.completion,
        "tokens": list(tokens),
        "mask": mask_runs(np.asarray(mask, dtype=np.bool_)),
        "version_spans": [[int(start), int(end), int(number)] for start, end, number in trajectory.version_spans],
        "logprobs": np.rint(np.nan_to_num(sampled * 1000.0, posinf=0.0, neginf=-1e6)).astype(np.int64).tolist(),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
