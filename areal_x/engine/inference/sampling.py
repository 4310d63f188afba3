"""Sampling of one token for every row at once.

The randomness of a token is a hash of its request's seed and its place in the completion, so what a seeded request
samples does not depend on which other requests share the batch, nor on when it joined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["RowSampling", "sample", "uniform_noise"]

UInt64Array = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: UInt64Array) -> UInt64Array:
    """The output function of the SplitMix64 generator (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def uniform_noise(seeds: UInt64Array, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each pair of seed and place in the completion."""
    streams = _mix(seeds * _GOLDEN + _GOLDEN)
    bits = _mix(streams + (places.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(slots=True)
class RowSampling:
    """Sampling parameters of R rows: ``inverse_temperature`` float32 (1 for greedy rows), ``greedy`` bool, ``top_p``
    float32 (1: off), ``top_k`` int64 (0: off), ``seeds`` uint64, ``places`` int64 (tokens sampled so far)."""

    inverse_temperature: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_]
    top_p: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    seeds: UInt64Array
    places: npt.NDArray[np.int64]


def sample(logits: torch.Tensor, rows: RowSampling) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Sample one token per row.

    Args:
        logits: [R, vocabulary], any floating type.
        rows: the parameters of each row.

    Returns:
        Ids int64 [R] and log-probabilities float32 [R]. The latter are under the distribution sampled from, after
        temperature, top-k and top-p (in this order); for greedy rows under the untempered softmax. They are not finite
        where the logits are not.
    """
    device = logits.device
    logits = logits.float()
    if (rows.inverse_temperature != 1.0).any():
        logits = logits * torch.from_numpy(rows.inverse_temperature).to(device)[:, None]
    probs = torch.softmax(logits, -1)
    truncated = np.flatnonzero(((rows.top_p < 1.0) | (rows.top_k > 0)) & ~rows.greedy)
    if len(truncated):
        index = torch.from_numpy(truncated).to(device)
        probs[index] = _truncate(probs[index], rows.top_p[truncated], rows.top_k[truncated])
    ids: torch.Tensor | None = None
    if not rows.greedy.all():
        ids = _draw(probs, uniform_noise(rows.seeds, rows.places))
    if rows.greedy.any():
        best = probs.argmax(-1, keepdim=True)
        ids = best if ids is None else torch.where(torch.from_numpy(rows.greedy).to(device)[:, None], best, ids)
    assert ids is not None
    logprobs = probs.gather(1, ids).log_()
    return ids[:, 0].cpu().numpy(), logprobs[:, 0].cpu().numpy()


def _draw(probs: torch.Tensor, noise: npt.NDArray[np.float64]) -> torch.Tensor:
    """Invert the cumulative distribution at ``noise`` [R]; ids [R, 1]. Sums in float64, so that a large vocabulary's
    tail keeps its mass. The strict comparison never picks a token of probability zero."""
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # The largest noise is 1 - 2^-53; the product may round up to the total itself.
    threshold = torch.minimum(torch.from_numpy(noise).to(probs.device)[:, None] * total, total * (1 - 2**-50))
    ids = torch.searchsorted(cumulative, threshold, right=True)
    # Only probabilities that are not finite can leave the range; the row's log-probability tells.
    return ids.clamp_(max=probs.shape[1] - 1)


def _truncate(probs: torch.Tensor, top_p: npt.NDArray[np.float32], top_k: npt.NDArray[np.int64]) -> torch.Tensor:
    """Keep the ``top_k`` most likely tokens, of these the fewest that hold ``top_p`` of the mass; renormalise. At least
    one token stays."""
    device, vocabulary = probs.device, probs.shape[1]
    limits = np.where(top_k > 0, np.minimum(top_k, vocabulary), vocabulary)
    values, order = torch.topk(probs, int(limits.max()), sorted=True)
    ranks = torch.arange(values.shape[1], device=device)
    values = values * (ranks < torch.from_numpy(limits).to(device)[:, None])
    share = torch.from_numpy(np.maximum(top_p, 0.0)).to(device)[:, None]
    before = values.cumsum(-1) - values
    # A share of 1 keeps all, whatever rounding makes of the sum.
    kept = (before < share * values.sum(-1, keepdim=True)) | (share >= 1.0)
    kept[:, 0] = True
    values = values * kept
    values = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter_(1, order, values)
