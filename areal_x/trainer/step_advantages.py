"""The advantages of a batch, and what a step reports about them.

Axis letters: S sequences of the batch, N tokens of all of them laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from areal_x.api.advantage_api import AdvantageFunction, Advantages, RewardedSamples
from areal_x.api.errors import ConfigError
from areal_x.api.records import NOT_GENERATED, BoolArray, FloatArray, TrainBatch
from areal_x.engine.train.advantages import kl_estimate

__all__ = ["advantage_metrics", "critic_metrics", "estimate_advantages", "kl_metrics", "sampled_tokens"]


def estimate_advantages(
    function: AdvantageFunction,
    batch: TrainBatch,
    rewards: Sequence[tuple[float, FloatArray]],
    kl_penalties: FloatArray | None = None,
) -> FloatArray:
    """Write ``batch.advantages`` and, where there are any, ``batch.returns``.

    Args:
        function: called once for each of ``rewards``, whose advantages are added up by weight.
        batch: with all that the function may look at.
        rewards: from ``weighted_rewards``.
        kl_penalties: coefficient times KL divergence of each sampled token, [N].

    Returns:
        The mean advantage of each sample's sampled tokens, float32 [S]; 0 for masked samples.

    Raises:
        ConfigError: what a user's function returned are not advantages.
    """
    sampled_N = sampled_tokens(batch)
    total: Advantages | None = None
    for weight, rewards_S in rewards:
        samples = RewardedSamples(
            rewards=rewards_S,
            group_ids=batch.group_ids,
            lengths=batch.lengths,
            sampled=sampled_N,
            trained=batch.loss_mask,
            kl_penalties=kl_penalties,
            values=batch.values,
        )
        total = _sum(total, weight, _checked(function(samples), samples))
    assert total is not None
    if batch.values is not None and total.returns is None:
        raise ConfigError(
            "algorithm.advantage: the function gave no returns, so the critic has nothing to learn; return "
            "Advantages(values, returns), or set critic.enabled=false"
        )
    batch.returns = None if total.returns is None else total.returns.astype(np.float32)
    if total.values.shape == batch.lengths.shape:
        batch.advantages = np.repeat(total.values.astype(np.float32), batch.lengths)
        return total.values.astype(np.float32)
    batch.advantages = total.values.astype(np.float32)
    return _sample_means(batch, sampled_N)


def sampled_tokens(batch: TrainBatch) -> BoolArray:
    """Which tokens an engine sampled, trained or not, [N]."""
    assert batch.versions is not None
    sampled_N: BoolArray = batch.versions != NOT_GENERATED
    return sampled_N


def _checked(result: Advantages | npt.NDArray[np.floating], samples: RewardedSamples) -> Advantages:
    """A function's result, 0 in masked samples."""
    found = result if isinstance(result, Advantages) else Advantages(np.asarray(result))
    num_samples, num_tokens = len(samples), len(samples.sampled)
    if found.values.shape not in ((num_samples,), (num_tokens,)):
        raise ConfigError(
            f"algorithm.advantage: the function returned advantages of shape {found.values.shape}; it must be one for "
            f"each sample, ({num_samples},), or one for each token, ({num_tokens},)"
        )
    if found.returns is not None and found.returns.shape != (num_tokens,):
        raise ConfigError(
            f"algorithm.advantage: the function gave returns of shape {found.returns.shape} for {num_tokens} tokens"
        )
    counted = samples.counted
    if counted.all():
        return found
    if len(found.values) == num_tokens:
        counted = np.repeat(counted, samples.lengths)
    return Advantages(np.where(counted, found.values, 0.0), found.returns)


def _sum(total: Advantages | None, weight: float, found: Advantages) -> Advantages:
    if total is None:
        return found if weight == 1.0 else Advantages(weight * found.values, found.returns)
    return Advantages(total.values + weight * found.values, total.returns)


def _sample_means(batch: TrainBatch, sampled_N: BoolArray) -> FloatArray:
    sample_N = np.repeat(np.arange(len(batch)), batch.lengths)[sampled_N]
    number_S = np.bincount(sample_N, minlength=len(batch))
    sum_S = np.bincount(sample_N, weights=batch.advantages[sampled_N], minlength=len(batch))
    return (sum_S / np.maximum(number_S, 1)).astype(np.float32)


def advantage_metrics(parts: Sequence[TrainBatch], advantages: FloatArray) -> dict[str, float]:
    """Of the advantages of all trained tokens, where they are finite, and of one number for each sample that has a
    reward."""
    metrics = {}
    trained = np.concatenate([np.zeros(0, np.float32), *(part.advantages[part.loss_mask] for part in parts)])
    if len(trained) and np.isfinite(trained).all():
        metrics = {f"advantage/{name}": float(getattr(trained, name)()) for name in ("mean", "std", "min", "max")}
    if len(advantages):
        metrics["advantage/zero_fraction"] = float((advantages == 0).mean())
    return metrics


def critic_metrics(parts: Sequence[TrainBatch]) -> dict[str, float]:
    """How well the critic's values foretold the returns of the trained tokens: 1 is perfectly, 0 as a constant does."""
    pairs = [
        (part.values[part.loss_mask], part.returns[part.loss_mask])
        for part in parts
        if part.values is not None and part.returns is not None and part.loss_mask.any()
    ]
    if not pairs:
        return {}
    values, returns = (np.concatenate(arrays).astype(np.float64) for arrays in zip(*pairs, strict=True))
    metrics = {"critic/value_mean": float(values.mean()), "critic/return_mean": float(returns.mean())}
    if (variance := float(returns.var())) > 0:
        metrics["critic/explained_variance"] = 1.0 - float((returns - values).var()) / variance
    return metrics


def kl_metrics(parts: Sequence[TrainBatch], estimator: str) -> dict[str, float]:
    """The KL divergence that was taken from rewards, times no coefficient: mean of the sampled tokens, and of the
    samples' sums; nothing where it is not finite."""
    sums = [
        float(kl_estimate(part.proximal, part.reference, estimator)[sampled_tokens(part)].sum())
        for part in parts
        if part.proximal is not None and part.reference is not None
    ]
    if not sums or not np.isfinite(sums).all():
        return {}
    num_tokens = sum(int(sampled_tokens(part).sum()) for part in parts)
    return {
        "advantage/kl": sum(sums) / max(1, num_tokens),
        "advantage/kl_of_sample": sum(sums) / max(1, sum(map(len, parts))),
    }
