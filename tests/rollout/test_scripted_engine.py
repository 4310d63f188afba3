from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from rollout_fakes import in_virtual_time

from areal_x.api.errors import EngineDiedError, PromptTooLongError
from areal_x.api.records import ModelRequest, ModelResponse
from areal_x.engine.inference.scripted import ScriptedCompletion, ScriptedEngine

PROMPT = np.array([5, 6])


def fixed(seconds: float, num_tokens: int = 100) -> ScriptedEngine:
    return ScriptedEngine(lambda request: ScriptedCompletion(np.arange(num_tokens), seconds), num_slots=2)


async def test_says_what_the_script_says() -> None:
    engine = ScriptedEngine(lambda request: ScriptedCompletion([7, 8], 0.0, [-1.0, -2.0], "length"), version=4)
    response = await engine.agenerate(ModelRequest(PROMPT))
    assert response.output_ids.tolist() == [7, 8]
    assert response.logprobs.tolist() == [-1.0, -2.0]
    assert response.version_spans == [(0, 2, 4)]
    assert response.stop_reason == "length"


@in_virtual_time
async def test_a_queue_takes_slots_in_order_and_loses_no_time() -> None:
    engine = fixed(0.02)
    responses = await asyncio.gather(*(engine.agenerate(ModelRequest(PROMPT, request_id=str(n))) for n in range(10)))
    starts = [response.started_at for response in responses]
    assert starts == sorted(starts)
    # A slot is taken at the moment when it became free, however late the timers were.
    assert starts[2:] == [response.finished_at for response in responses[:-2]]
    assert (await engine.health()).num_running == 0


@in_virtual_time
async def test_tokens_carry_the_version_of_their_moment() -> None:
    engine = fixed(0.2, num_tokens=1000)
    request = asyncio.ensure_future(engine.agenerate(ModelRequest(PROMPT)))
    updates = []
    for version in (1, 2, 3):
        await asyncio.sleep(0.04)
        await engine.update_weights(version)
        updates.append(time.monotonic())
    response = await request
    spans = response.version_spans
    assert [span.version for span in spans] == [0, 1, 2, 3]
    assert spans[0].start == 0 and spans[-1].end == 1000
    for before, after, moment in zip(spans, spans[1:], updates, strict=False):
        assert before.end == after.start
        assert before.end == pytest.approx((moment - response.started_at) / 0.2 * 1000, abs=2)


@in_virtual_time
async def test_many_updates_are_forgotten_but_not_those_in_use() -> None:
    engine = fixed(0.3, num_tokens=3000)
    request = asyncio.ensure_future(engine.agenerate(ModelRequest(PROMPT)))
    await asyncio.sleep(0.01)
    for version in range(1, 600):
        await engine.update_weights(version)
    response = await request
    assert response.version_spans[0].version == 0
    assert response.version_spans[-1].version == 599
    assert sum(span.end - span.start for span in response.version_spans) == 3000
    for version in range(600, 1200):
        await engine.update_weights(version)
    assert (await engine.agenerate(ModelRequest(PROMPT))).version_spans[0].version == 1199


async def test_a_cancelled_request_frees_its_slot_and_its_place_in_the_queue() -> None:
    engine = fixed(60.0)
    requests = [asyncio.ensure_future(engine.agenerate(ModelRequest(PROMPT))) for _ in range(4)]
    await asyncio.sleep(0)
    requests[3].cancel()
    requests[0].cancel()
    await asyncio.sleep(0.01)
    health = await engine.health()
    assert (health.num_running, health.num_waiting) == (2, 0)
    await engine.close()
    for request in requests[1:3]:
        with pytest.raises(EngineDiedError):
            await request


@in_virtual_time
async def test_pause_stops_the_clock() -> None:
    engine = fixed(0.05)
    request = asyncio.ensure_future(engine.agenerate(ModelRequest(PROMPT)))
    await asyncio.sleep(0.01)
    await engine.pause()
    waiting = asyncio.ensure_future(engine.agenerate(ModelRequest(PROMPT)))
    await asyncio.sleep(0.1)
    assert not request.done()
    started = time.monotonic()
    await engine.resume()
    await request
    assert 0.02 < time.monotonic() - started < 0.2
    await waiting


async def test_impossible_requests_keep_their_place_in_a_batch() -> None:
    def script(request: ModelRequest) -> ScriptedCompletion:
        if request.input_ids[0] == 0:
            raise PromptTooLongError("no room")
        return ScriptedCompletion([1])

    engine = ScriptedEngine(script)
    results = await engine.agenerate_batch([ModelRequest(np.array([n])) for n in (1, 0, 2)])
    assert isinstance(results[0], ModelResponse) and isinstance(results[2], ModelResponse)
    assert isinstance(results[1], PromptTooLongError)


async def test_a_dead_engine_says_so() -> None:
    engine = fixed(60.0)
    request = asyncio.ensure_future(engine.agenerate(ModelRequest(PROMPT)))
    await asyncio.sleep(0)
    engine.die("last words")
    with pytest.raises(EngineDiedError) as caught:
        await request
    assert caught.value.tail == "last words"
    for call in (engine.agenerate(ModelRequest(PROMPT)), engine.health()):
        with pytest.raises(EngineDiedError):
            await call
