"""Two real servers with tied embeddings, updated by one broadcast; then they die, hang and vanish under load.

The tests of a kind share its servers and run in this order: the last one leaves none.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
import psutil
import pytest
import pytest_asyncio
from conftest import mark_kind
from running_engines import SERVERS, Running, request, start_running
from server_models import VOCAB, make_policy
from server_processes import engine_process, family, is_running, servers_of, until

from areal_x.api.errors import EngineDiedError
from areal_x.api.records import ModelRequest, ModelResponse

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

STALL_SECONDS = 12.0
MOST_SECONDS_ELSEWHERE = 20.0
MOST_SECONDS_BACK = 200.0
"""Of one server, where two at once start in less; where they take longer, three times as much as they did."""
MOST_SECONDS_ALL_GONE = 100.0
NUM_REQUESTS, NUM_TOKENS = 96, 400


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[mark_kind(kind) for kind in SERVERS])
async def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """Two servers, which may be started again often."""
    folder = tmp_path_factory.mktemp(f"pair_{request.param}")
    started = time.monotonic()
    running = await start_running(
        request.param,
        make_policy(folder / "model", tied=True),
        folder / "logs",
        num_servers=2,
        weights="gloo",
        stall_timeout_seconds=STALL_SECONDS,
        update_timeout_seconds=20.0,
        max_restarts=20,
        stream_interval=8,
    )
    running.start_seconds = time.monotonic() - started
    yield running
    await running.close()
    assert not servers_of(running.policy.path)


def many(seed: int, count: int = NUM_REQUESTS, tokens: int = NUM_TOKENS) -> list[ModelRequest]:
    """Requests of several sessions and temperatures."""
    rng = np.random.default_rng(seed)
    made = [
        request(
            rng.integers(2, VOCAB, rng.integers(1, 40)), max_new_tokens=tokens, temperature=(1.0, 0.7)[i % 2], seed=i
        )
        for i in range(count)
    ]
    for number, one in enumerate(made):
        one.session_id = f"session-{number % 40}" if number % 3 else None
    return made


def send(pair: Running, requests: Sequence[ModelRequest]) -> list[asyncio.Task[ModelResponse]]:
    return [asyncio.create_task(pair.engine.agenerate(one)) for one in requests]


async def assert_answered(
    pair: Running, requests: Sequence[ModelRequest], tasks: Sequence[asyncio.Task[ModelResponse]]
) -> set[int]:
    """Each request got its own whole answer, each token exact under its version; returns the versions seen."""
    responses = await asyncio.gather(*tasks)
    assert [response.request_id for response in responses] == [one.request_id for one in requests]
    for one, response in zip(requests, responses, strict=True):
        assert len(response.output_ids) == one.sampling.max_new_tokens and response.stop_reason == "length"
        pair.policy.assert_exact(response, one.sampling.temperature)
    health = await pair.engine.health()
    assert (health.num_running, health.num_waiting) == (0, 0)
    return {span.version for response in responses for span in response.version_spans}


def serving(pair: Running) -> list[int]:
    """Places of the servers that take requests."""
    return [place for place, replica in enumerate(pair.engine.replicas) if replica.state == "serving"]


def most_seconds_back(pair: Running) -> float:
    return max(MOST_SECONDS_BACK, 3 * pair.start_seconds)


async def until_both_serve(pair: Running) -> None:
    await until(lambda: len(serving(pair)) == 2, 2 * most_seconds_back(pair), "both servers serve")


async def assert_both_serve(pair: Running) -> None:
    """Both take part, with the newest weights."""
    before = [replica.num_tokens for replica in pair.engine.replicas]
    requests = many(99, 32, 30)
    seen = await assert_answered(pair, requests, send(pair, requests))
    assert seen == {pair.version}
    for replica, tokens in zip(pair.engine.replicas, before, strict=True):
        assert replica.num_tokens - tokens >= 200, f"{replica} has hardly worked"


async def test_both_are_updated_together(pair: Running) -> None:
    # The first update makes the group of the broadcast, which takes its time.
    first = await pair.publish()
    requests = many(0, tokens=450)
    tasks = send(pair, requests)
    for _ in range(2):
        await pair.until(20 * NUM_REQUESTS)
        await pair.publish()
        assert [replica.version for replica in pair.engine.replicas] == [pair.version] * 2
    assert await assert_answered(pair, requests, tasks) == {first, first + 1, first + 2}
    await assert_both_serve(pair)


async def test_a_killed_server_loses_no_request_and_comes_back(pair: Running) -> None:
    """Its requests go on elsewhere, an update does not wait for it, and it comes back with that update's weights."""
    requests = many(1)
    tasks = send(pair, requests)
    await pair.until(20 * NUM_REQUESTS)
    first, second = pair.engine.replicas
    victim = servers_of(pair.policy.path)[0]
    processes = family(victim)
    killed_replica = next(replica for replica in (first, second) if replica.process.pid == victim.pid)
    other = second if killed_replica is first else first
    taken, kept = killed_replica.num_running, other.num_running
    assert taken > 20 and kept > 20
    done = sum(task.done() for task in tasks)
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    await until(lambda: other.num_running + sum(task.done() for task in tasks) - done >= taken + kept, 60, "elsewhere")
    elsewhere = time.monotonic() - killed
    version = await pair.publish()
    assert killed_replica.state != "serving", "the update waited for the dead server"
    assert version in await assert_answered(pair, requests, tasks)
    await until_both_serve(pair)
    back = time.monotonic() - killed
    print(f"{pair.kind}: {taken} requests elsewhere after {elsewhere:.2f} s, server back after {back:.1f} s")
    await assert_both_serve(pair)
    assert not any(is_running(process) for process in processes)
    assert elsewhere <= MOST_SECONDS_ELSEWHERE and back <= most_seconds_back(pair)
    await pair.publish()
    await assert_both_serve(pair)


@pytest.mark.parametrize("part", ["only what computes", pytest.param("all of it", marks=pytest.mark.soak)])
async def test_a_server_that_hangs_is_replaced(pair: Running, part: str) -> None:
    """Stopped as a whole, not even its health answers; with its computing process stopped, HTTP goes on."""
    requests = many(3)
    tasks = send(pair, requests)
    await pair.until(10 * NUM_REQUESTS)
    victim = servers_of(pair.policy.path)[0]
    stopped = family(victim) if part == "all of it" else [engine_process(victim)]
    for process in stopped:
        process.suspend()
    await until(lambda: len(serving(pair)) < 2, STALL_SECONDS + 60, "the hang is noticed")
    await assert_answered(pair, requests, tasks)
    await until(lambda: not any(map(is_running, stopped)), 60, "what hung is killed")
    await until_both_serve(pair)
    await assert_both_serve(pair)


async def test_an_update_in_which_a_server_dies_is_redone_for_the_other(pair: Running) -> None:
    """It dies after it was told to load and before the weights are sent: the broadcast breaks off for both."""
    requests = many(4)
    tasks = send(pair, requests)
    await pair.until(10 * NUM_REQUESTS)
    victim = servers_of(pair.policy.path)[0]
    send_weights, killed = pair.staging.send, []

    def kill_and_send() -> None:
        if not killed:
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)
            psutil.wait_procs([victim], timeout=60)
        send_weights()

    pair.staging.send = kill_and_send
    try:
        version = await pair.publish()
    finally:
        del pair.staging.send
    assert killed == [victim.pid]
    seen = await assert_answered(pair, requests, tasks)
    assert version in seen
    await until_both_serve(pair)
    await assert_both_serve(pair)


@pytest.mark.soak
async def test_a_server_that_dies_again_and_again_stops_nothing(pair: Running) -> None:
    """Killed at once whenever it comes up, while the other one works and is updated."""
    victim = pair.engine.replicas[0]
    requests = many(5, NUM_REQUESTS, 400)
    tasks = send(pair, requests)
    for _ in range(2):
        await until(lambda: victim.state == "serving", 2 * most_seconds_back(pair), "it is back")
        victim.process.kill()
        await until(lambda: victim.state != "serving", 5, "it is gone")
        await pair.publish()
    await assert_answered(pair, requests, tasks)
    await until_both_serve(pair)
    await assert_both_serve(pair)


async def test_with_all_servers_gone_every_request_ends_with_the_cause(pair: Running) -> None:
    requests = many(6)
    tasks = send(pair, requests)
    await pair.until(10 * NUM_REQUESTS)
    # So that no server can be started again.
    (pair.policy.path / "config.json").rename(pair.policy.path / "config.moved")
    for server in servers_of(pair.policy.path):
        server.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    seconds = time.monotonic() - killed
    print(f"{pair.kind}: all requests ended {seconds:.1f} s after the last server was killed")
    assert seconds <= MOST_SECONDS_ALL_GONE
    unfinished = [result for result in results if not isinstance(result, ModelResponse)]
    assert unfinished and all(isinstance(result, EngineDiedError) for result in unfinished)
    assert "signal 9" in str(unfinished[0]) or "config.json" in str(unfinished[0]), str(unfinished[0])
    assert unfinished[0].tail
    with pytest.raises(EngineDiedError):
        await pair.engine.agenerate(request())
    with pytest.raises(EngineDiedError):
        await pair.engine.health()
