"""One contract, three engines: what is sampled, what its log-probabilities are, how it stops and what is refused."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from running_engines import NUM_SLOTS, Running, request
from server_models import EOS, EXACT, LETTERS, MAX_LENGTH, VOCAB

from areal_x.api.errors import PromptTooLongError, RequestError
from areal_x.api.records import ModelResponse

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

SEEDED = ("embedded", "vllm")
"""Engines whose samples repeat with a request's seed."""


def prompts(count: int, seed: int = 0, longest: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCAB, rng.integers(1, longest)) for _ in range(count)]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.3])
async def test_logprobs_are_those_of_a_plain_forward_pass(running: Running, temperature: float) -> None:
    responses = await running.run(
        *(request(ids, temperature=temperature, max_new_tokens=40, seed=i) for i, ids in enumerate(prompts(12)))
    )
    for response in responses:
        assert len(response.output_ids) == 40 and response.stop_reason == "length"
        assert [span.version for span in response.version_spans] == [running.version]
        running.policy.assert_exact(response, temperature)


async def test_greedy_takes_the_most_likely_token(running: Running) -> None:
    for response in await running.run(*(request(ids, temperature=0.0, max_new_tokens=20) for ids in prompts(6, 1))):
        for place in range(len(response.output_ids)):
            prefix = np.concatenate([response.input_ids, response.output_ids[:place]])
            logprobs = running.policy.next_logprobs(running.version, prefix)
            assert logprobs[response.output_ids[place]] >= logprobs.max() - 1e-4


@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_samples_are_drawn_from_the_distribution(running: Running, temperature: float) -> None:
    """A chi-square test of the first token over many samples of one prompt."""
    count, ids = 1500, (5, 9, 33)
    sampling = {"temperature": temperature, "max_new_tokens": 1, "seed": None}
    responses = await running.run(*(request(ids, **sampling) for _ in range(count)))
    seen = np.bincount([response.output_ids[0] for response in responses], minlength=VOCAB)
    expected = count * np.exp(running.policy.next_logprobs(running.version, np.array(ids, np.int32), temperature))
    often = expected >= 5
    statistic = ((seen - expected) ** 2 / expected)[often].sum()
    freedom = int(often.sum())
    assert freedom > 10
    # Five standard deviations of the distribution that the statistic has when the samples are right.
    assert statistic < freedom + 5 * np.sqrt(2 * freedom), f"{statistic:.0f} with {freedom} degrees of freedom"


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.8)])
async def test_truncated_samples_have_the_truncated_distribution_or_no_logprobs(
    running: Running, top_k: int, top_p: float
) -> None:
    sampling = {"temperature": 0.8, "top_k": top_k, "top_p": top_p, "max_new_tokens": 15}
    for response in await running.run(*(request(ids, seed=i, **sampling) for i, ids in enumerate(prompts(6, 3)))):
        for place, token in enumerate(response.output_ids):
            prefix = np.concatenate([response.input_ids, response.output_ids[:place]])
            probabilities = np.exp(running.policy.next_logprobs(running.version, prefix, 0.8))
            order = np.argsort(-probabilities)
            # As many as are needed to reach top_p, or the first top_k.
            kept = top_k or int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
            assert token in order[:kept]
            if running.kind == "sglang":
                assert np.isnan(response.logprobs[place])
            else:
                expected = np.log(probabilities[token] / probabilities[order[:kept]].sum())
                np.testing.assert_allclose(response.logprobs[place], expected, atol=EXACT, rtol=0)


async def test_samples_of_one_prompt_differ(running: Running) -> None:
    responses = await running.run(*(request(seed=None, max_new_tokens=20) for _ in range(8)))
    assert len({response.output_ids.tobytes() for response in responses}) == 8
    for response in responses:
        running.policy.assert_exact(response)


async def test_samples_repeat_with_their_seed(running: Running) -> None:
    if running.kind not in SEEDED:
        pytest.skip(f"{running.kind} does not sample by a request's seed")
    first, again, other = await running.run(*(request(seed=seed, max_new_tokens=30) for seed in (7, 7, 8)))
    assert first.output_ids.tolist() == again.output_ids.tolist() != other.output_ids.tolist()
    (alone,) = await running.run(request(seed=7, max_new_tokens=30))
    assert alone.output_ids.tolist() == first.output_ids.tolist()


async def greedy_of_letters(running: Running) -> ModelResponse:
    """A greedy completion without special tokens, whose text has one letter for each token."""
    sampling = {"temperature": 0.0, "max_new_tokens": 40}
    responses = await running.run(*(request(ids, **sampling) for ids in prompts(60, 5)))
    return next(response for response in responses if min(response.output_ids) > 1)


async def again(running: Running, response: ModelResponse, **sampling: object) -> ModelResponse:
    """The same prompt, greedy again."""
    sampling = {"temperature": 0.0, "max_new_tokens": 40, **sampling}
    (again,) = await running.run(request(response.input_ids, **sampling))
    return again


async def test_stop_ids_end_a_completion_and_are_kept(running: Running) -> None:
    response = await greedy_of_letters(running)
    free = response.output_ids.tolist()
    stop = free[20]
    stopped = await again(running, response, stop_token_ids=(stop,))
    assert stopped.stop_reason == "stop"
    assert stopped.output_ids.tolist() == free[: free.index(stop) + 1]
    running.policy.assert_exact(stopped, 0.0)


async def test_stop_strings_end_a_completion_where_they_are_complete(running: Running) -> None:
    response = await greedy_of_letters(running)
    free = response.output_ids.tolist()
    text = "".join(LETTERS[token - 2] for token in free)
    for place in (5, 14, 15, 16, 30):
        # Two letters across two tokens, wherever the model first wrote them.
        stop = text[place : place + 2]
        stopped = await again(running, response, stop=("never", stop))
        assert stopped.stop_reason == "stop"
        assert stopped.output_ids.tolist() == free[: text.index(stop) + 2]
        running.policy.assert_exact(stopped, 0.0)


async def test_end_of_sequence_ends_a_completion_unless_ignored(running: Running) -> None:
    many = [request(max_new_tokens=150, seed=i, ignore_eos=False) for i in range(40)]
    responses = await running.run(*many)
    stopped = [response for response in responses if response.stop_reason == "stop"]
    assert len(stopped) > 5
    for response in responses:
        assert (response.output_ids[:-1] != EOS).all()
        assert (response.output_ids[-1] == EOS) == (response.stop_reason == "stop")
        running.policy.assert_exact(response)
    ignored = await running.run(*(request(max_new_tokens=150, seed=i) for i in range(40)))
    assert all(len(response.output_ids) == 150 and response.stop_reason == "length" for response in ignored)
    assert any((response.output_ids == EOS).any() for response in ignored)


async def test_max_length_cuts_a_completion(running: Running) -> None:
    (response,) = await running.run(request(np.full(MAX_LENGTH - 5, 7), max_new_tokens=50))
    assert len(response.output_ids) == 5 and response.stop_reason == "length"
    running.policy.assert_exact(response)
    (response,) = await running.run(request(np.full(MAX_LENGTH - 1, 7)))
    assert len(response.output_ids) == 1
    with pytest.raises(PromptTooLongError, match=f"{MAX_LENGTH} tokens.*max_length {MAX_LENGTH}"):
        await running.engine.agenerate(request(np.full(MAX_LENGTH, 7)))


async def test_impossible_requests_are_refused_one_by_one(running: Running) -> None:
    engine = running.engine
    for ids, word in (([2, VOCAB], f"id {VOCAB}"), ([-1], "id -1"), ([2**31 - 1], "id 2147483647"), ([], "one id")):
        with pytest.raises(RequestError, match=word):
            await engine.agenerate(request(ids))
    for bad in (
        {"max_new_tokens": 0}, {"temperature": -0.5}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"stop": ("",)},
    ):  # fmt: skip
        with pytest.raises(RequestError, match=next(iter(bad))):
            await engine.agenerate(request(**bad))
    mixed = await engine.agenerate_batch([request(max_new_tokens=3), request([VOCAB]), request(max_new_tokens=2)])
    assert [isinstance(result, RequestError) for result in mixed] == [False, True, False]
    assert [len(result.output_ids) for result in mixed if isinstance(result, ModelResponse)] == [3, 2]


async def test_every_token_of_the_vocabulary_may_be_sent(running: Running) -> None:
    (response,) = await running.run(request(np.arange(VOCAB), max_new_tokens=10))
    running.policy.assert_exact(response)


async def test_cancelling_frees_the_slots(running: Running) -> None:
    engine = running.engine
    long = [request(max_new_tokens=480, seed=i) for i in range(NUM_SLOTS + 8)]
    tasks = [asyncio.create_task(engine.agenerate(item)) for item in long]
    await running.until(NUM_SLOTS)
    assert (await engine.health()).num_running == NUM_SLOTS or running.kind != "embedded"
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    (response,) = await running.run(request(max_new_tokens=5))
    assert len(response.output_ids) == 5
    health = await engine.health()
    assert (health.num_running, health.num_waiting) == (0, 0)
    before = health.num_generated_tokens
    await asyncio.sleep(0.3)
    assert (await engine.health()).num_generated_tokens == before, "cancelled requests are still generating"


async def test_health_counts_what_was_generated(running: Running) -> None:
    before = await running.engine.health()
    await running.run(*(request(max_new_tokens=20, seed=i) for i in range(10)))
    after = await running.engine.health()
    assert after.alive and after.version == running.version
    assert after.num_generated_tokens - before.num_generated_tokens == 200
    assert after.busy_seconds > before.busy_seconds


async def test_times_are_those_of_the_work(running: Running) -> None:
    before = time.monotonic()
    (response,) = await running.run(request(max_new_tokens=50))
    assert before <= response.started_at < response.finished_at <= time.monotonic()
