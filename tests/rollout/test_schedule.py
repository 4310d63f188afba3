"""The schedule of asynchronous training, in virtual time: what the machine does meanwhile changes nothing."""

from __future__ import annotations

import pytest
from rollout_fakes import bench

TOKEN_SECONDS = 1e-3
STEPS, WARM = 30, 12


@pytest.mark.parametrize("group_size", [1, 8])
@pytest.mark.parametrize("parts", [True, False])
def test_full_speed_within_the_bound(group_size: int, parts: bool) -> None:
    lengths = bench.draw_lengths((STEPS + WARM + 6) * bench.BATCH, seed=1)
    measured = bench.simulate(bench.run(lengths, TOKEN_SECONDS, group_size, bench.STALENESS, STEPS, WARM, parts))
    num_trained, num_old = bench.tokens_out_of_bound(measured, bench.STALENESS)
    assert num_old == 0
    assert num_trained > 0
    step_tokens = float(lengths[: STEPS * bench.BATCH].mean())
    bound = max(bench.sampled_tokens(measured) / bench.SLOTS / STEPS, step_tokens) * TOKEN_SECONDS
    assert bound / measured.step_seconds >= 0.92
    least_tokens, _, total = bench.least_masked(measured, step_tokens)
    assert num_trained + measured.masked_tokens == total
    # A trainer that takes whole batches pays for the wait for the next step; one that takes parts comes near the least.
    assert measured.masked_tokens / least_tokens <= (1.3 if parts else 2.4)


def test_synchronous_steps_take_the_longest_sample_and_the_training() -> None:
    lengths = bench.draw_lengths(5 * bench.BATCH, seed=2)
    measured = bench.simulate(bench.run(lengths, TOKEN_SECONDS, 8, 0, 5, 0, False))
    steps = lengths.reshape(5, bench.BATCH)
    expected = float((steps.max(axis=1) + lengths.mean()).mean()) * TOKEN_SECONDS
    assert measured.step_seconds == pytest.approx(expected, rel=1e-3)
    assert measured.masked_tokens == 0
