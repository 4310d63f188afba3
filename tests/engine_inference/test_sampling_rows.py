"""Sampling against an independent numpy version of temperature, top-k and top-p."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.engine.inference.sampling import RowSampling, sample, uniform_noise


def rows_of(count: int, temperature: float, top_p: float, top_k: int, seed: int = 0) -> RowSampling:
    greedy = temperature == 0.0
    return RowSampling(
        np.full(count, 1.0 if greedy else 1.0 / temperature, np.float32),
        np.full(count, greedy),
        np.full(count, top_p, np.float32),
        np.full(count, top_k, np.int64),
        np.full(count, seed, np.uint64),
        np.arange(count, dtype=np.int64),
    )


def reference(logits: npt.NDArray[np.float64], temperature: float, top_p: float, top_k: int) -> npt.NDArray[np.float64]:
    """The distribution, one row, token by token."""
    scaled = logits / temperature
    probs = np.exp(scaled - scaled.max())
    order = np.argsort(-probs, kind="stable")
    kept = list(order[: top_k or len(order)])
    mass = probs[kept].sum()
    result = np.zeros_like(probs)
    running = 0.0
    for token in kept:
        if running >= top_p * mass and top_p < 1.0 and running > 0.0:
            break
        result[token] = probs[token]
        running += probs[token]
    return result / result.sum()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.2, 3.0),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 0.99)),
    top_k=st.integers(0, 12),
)
def test_tokens_and_logprobs_follow_the_distribution_sampled_from(
    seed: int, temperature: float, top_p: float, top_k: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(9) * 2).astype(np.float32)
    expected = reference(logits.astype(np.float64), temperature, top_p, top_k)
    # A share that ends within rounding of a token's edge may fall on either side of it.
    edges = np.cumsum(np.sort(reference(logits.astype(np.float64), temperature, 1.0, top_k))[::-1])
    if abs(edges - top_p).min() < 1e-5 and top_p < 1.0:
        return
    count = 64
    rows = rows_of(count, temperature, top_p, top_k, seed)
    ids, logprobs = sample(torch.from_numpy(np.tile(logits, (count, 1))), rows)
    assert (expected[ids] > 0).all()
    np.testing.assert_allclose(logprobs, np.log(expected[ids]), atol=1e-5)
    noise = uniform_noise(rows.seeds, rows.places)
    inverted = np.searchsorted(np.cumsum(expected), noise * expected.sum(), side="right")
    assert (inverted == ids).mean() > 0.95


def test_frequencies_match_probabilities() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, -np.inf], np.float32)
    count = 20_000
    ids, _ = sample(torch.from_numpy(np.tile(logits, (count, 1))), rows_of(count, 1.0, 1.0, 0, seed=9))
    probs = reference(logits.astype(np.float64), 1.0, 1.0, 0)
    counts = np.bincount(ids, minlength=5)
    assert counts[4] == 0
    assert (((counts - count * probs)[:4] ** 2) / (count * probs[:4])).sum() < 20  # 3 degrees of freedom.


def test_mixed_rows_each_follow_their_own_parameters() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]]).repeat(4, 1)
    rows = RowSampling(
        np.array([1.0, 2.0, 1.0, 0.5], np.float32),
        np.array([True, False, False, False]),
        np.array([0.1, 1.0, 0.5, 1.0], np.float32),
        np.array([1, 0, 0, 1], np.int64),
        np.arange(4, dtype=np.uint64),
        np.zeros(4, np.int64),
    )
    ids, logprobs = sample(logits, rows)
    untempered = torch.log_softmax(logits[0], -1)
    doubled = torch.log_softmax(2 * logits[0], -1)
    assert ids[0] == 1 and abs(logprobs[0] - untempered[1]) < 1e-6
    assert abs(logprobs[1] - doubled[ids[1]]) < 1e-6
    assert ids[2] == 1 and logprobs[2] == 0.0
    assert ids[3] == 1 and logprobs[3] == 0.0
