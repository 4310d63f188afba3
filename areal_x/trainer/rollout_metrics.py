"""What a step's metrics say about the episodes and their age."""

from __future__ import annotations

from areal_x.api.engine_api import InferenceEngine
from areal_x.rollout.executor import RolloutExecutor

__all__ = ["ENGINE", "SCORES", "engine_metrics", "rollout_metrics"]

SCORES = "episodes/scores/"
"""Prefix of the running totals of scores by status."""

ENGINE = "engine/"
"""Prefix of the running totals of the inference engine."""


def engine_metrics(engine: InferenceEngine) -> dict[str, float]:
    """Running totals of the engine: restarts, requests that went on elsewhere, updates done again and so on."""
    return {f"{ENGINE}{name}": float(value) for name, value in engine.counters().items()}


def rollout_metrics(executor: RolloutExecutor) -> dict[str, float]:
    """Running totals of episodes by how they ended; the age of the tokens of the groups taken last; and, since the last
    call, the share of groups that were rejected, and those drawn in their place."""
    counts = executor.counts
    over_age = executor.take_over_age()
    verdicts = executor.take_verdicts()
    metrics = {
        "episodes/submitted": counts.submitted,
        "episodes/trained": counts.trained,
        "episodes/rejected": counts.rejected.total(),
        "episodes/failed": counts.failed.total(),
        "episodes/cancelled": counts.cancelled,
        "rollout/in_flight": executor.num_running_episodes,
        "rollout/queue": executor.num_ready_groups,
        "rollout/redraws": verdicts.num_redraws,
        "rollout/rejected_share": sum(verdicts.rejected_shares.values()),
        "rollout/masked_token_share": over_age.masked_share,
        "rollout/wholly_masked_samples": over_age.num_wholly_masked_samples,
        "staleness/mean_lag": over_age.mean_lag,
    }
    metrics |= {f"staleness/lag/{lag}": count for lag, count in sorted(over_age.lags.items())}
    metrics |= {f"rollout/rejected_share/{reason}": share for reason, share in verdicts.rejected_shares.items()}
    metrics |= {f"episodes/rejected/{reason}": count for reason, count in counts.rejected.items()}
    metrics |= {f"episodes/failed/{reason}": count for reason, count in counts.failed.items()}
    metrics |= {f"{SCORES}{status}": count for status, count in counts.scores.items()}
    return {name: float(value) for name, value in metrics.items()}
