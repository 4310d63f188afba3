"""New weights while requests are in flight: every token has the version that sampled it, on every engine."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from running_engines import NUM_SLOTS, Running, request
from server_models import EXACT, VOCAB

from areal_x.api.errors import EngineError
from areal_x.api.records import ModelResponse

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def responses_across_updates(running: Running) -> list[ModelResponse]:
    """A wave of requests and three updates meanwhile; every token is exact under its version."""
    rng = np.random.default_rng(0)
    requests = [
        request(rng.integers(2, VOCAB, 1 + i), max_new_tokens=150 + i, temperature=(1.0, 0.7)[i % 2], seed=i)
        for i in range(NUM_SLOTS)
    ]
    tasks = [asyncio.create_task(running.engine.agenerate(item)) for item in requests]
    for _ in range(3):
        await running.until(10 * NUM_SLOTS)
        await running.publish()
    responses = await asyncio.gather(*tasks)
    for sent, response in zip(requests, responses, strict=True):
        assert response.request_id == sent.request_id
        assert len(response.output_ids) == sent.sampling.max_new_tokens and response.stop_reason == "length"
        running.policy.assert_exact(response, sent.sampling.temperature)
    return responses


async def test_updates_reach_requests_in_flight_and_every_span_is_exact(running: Running) -> None:
    # While this process stands still, as on a busy machine, the engine does not: a wave may end before its updates.
    for _ in range(10):
        first = running.version
        responses = await responses_across_updates(running)
        seen = {span.version for response in responses for span in response.version_spans}
        assert seen <= set(range(first, first + 4))
        if sum(len(response.version_spans) == 4 for response in responses) > NUM_SLOTS / 2:
            return
    raise AssertionError(f"updates that met no request in flight: {seen}")


async def test_an_update_while_idle_counts_for_the_next_request(running: Running) -> None:
    version = await running.publish()
    (response,) = await running.run(request(max_new_tokens=10))
    assert [span.version for span in response.version_spans] == [version]
    running.policy.assert_exact(response)
    health = await running.engine.health()
    assert (health.version, health.num_running, health.num_waiting) == (version, 0, 0)


async def test_the_prefix_cache_does_not_outlive_the_weights(running: Running) -> None:
    """A prompt that is cached gives, after each update, what a forward pass of the new weights gives."""
    prefix = np.random.default_rng(1).integers(2, VOCAB, 200)
    shared = [request([*prefix, 2 + i], max_new_tokens=20, seed=i) for i in range(4)]
    old = await running.run(*shared)
    for _ in range(3):
        # The same again, so that the cache surely holds the prefix.
        await running.run(*shared)
        version = await running.publish()
        for response, before in zip(await running.run(*shared), old, strict=True):
            assert [span.version for span in response.version_spans] == [version]
            running.policy.assert_exact(response)
            stale = running.policy.logprobs(version, before)
            assert np.abs(stale - before.logprobs).max() > 100 * EXACT, "the versions are too alike to tell apart"


async def test_pause_stops_everything_and_resume_goes_on(running: Running) -> None:
    engine = running.engine
    in_flight = [asyncio.create_task(engine.agenerate(request(max_new_tokens=200, seed=i))) for i in range(8)]
    await running.until(80)
    await engine.pause()
    new = [asyncio.create_task(engine.agenerate(request(max_new_tokens=5, seed=i))) for i in range(8)]
    await asyncio.sleep(0.3)
    before = await engine.health()
    await asyncio.sleep(0.3)
    after = await engine.health()
    assert before.num_generated_tokens == after.num_generated_tokens
    assert not any(task.done() for task in new), "a request was served while paused"
    assert after.num_running + after.num_waiting == sum(not task.done() for task in in_flight) + len(new)
    await engine.resume()
    responses = await asyncio.gather(*in_flight, *new)
    assert [len(response.output_ids) for response in responses] == [200] * 8 + [5] * 8
    for response in responses:
        running.policy.assert_exact(response)


async def test_requests_made_while_paused_run_on_the_weights_published_meanwhile(running: Running) -> None:
    engine = running.engine
    await engine.pause()
    waiting = [asyncio.create_task(engine.agenerate(request(max_new_tokens=10, seed=i))) for i in range(4)]
    await asyncio.sleep(0.1)
    version = await running.publish()
    await engine.resume()
    for response in await asyncio.gather(*waiting):
        assert [span.version for span in response.version_spans] == [version]
        running.policy.assert_exact(response)


async def test_cancelled_requests_do_not_hold_up_an_update(running: Running) -> None:
    tasks = [asyncio.create_task(running.engine.agenerate(request(max_new_tokens=400, seed=i))) for i in range(32)]
    await running.until(64)
    update = asyncio.create_task(running.publish())
    for task in tasks[::2]:
        task.cancel()
    version = await update
    responses = await asyncio.gather(*tasks[1::2])
    for response in responses:
        assert len(response.output_ids) == 400 and response.version_spans[-1].version == version
        running.policy.assert_exact(response)
    health = await running.engine.health()
    assert (health.num_running, health.num_waiting) == (0, 0)


async def test_a_version_that_was_never_staged_is_an_error_and_the_old_one_stays(running: Running) -> None:
    if running.kind == "embedded":
        pytest.skip("the embedded engine waits for a version, and ends when it does not come")
    with pytest.raises(EngineError, match="version"):
        await running.engine.update_weights(running.version + 1)
    (response,) = await running.run(request(max_new_tokens=5))
    assert [span.version for span in response.version_spans] == [running.version]
    running.policy.assert_exact(response)
