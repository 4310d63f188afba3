"""Engines on servers that somebody else runs: attached by address, updated through files, left running at the end.

All three treatments of requests in flight are tried here, each by an engine of its own on the same server.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import mark_kind
from running_engines import NUM_SLOTS, SERVERS, Running, make_server_running, request
from server_by_hand import KEY, KEY_VARIABLE, ServerByHand, server_by_hand
from server_models import EXACT, VOCAB, Policy, assert_whole_spans, make_policy
from server_processes import family, is_running, until

from areal_x.api.config import ServerConfig
from areal_x.api.errors import EngineError
from areal_x.api.records import ModelRequest, ModelResponse

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Attached:
    """A server by hand and the folder of a test module."""

    server: ServerByHand
    policy: Policy
    folder: Path


@pytest.fixture(scope="module", params=[mark_kind(kind) for kind in SERVERS])
def attached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attached]:
    """A server that runs before any engine."""
    folder = tmp_path_factory.mktemp(f"by_hand_{request.param}")
    policy = make_policy(folder / "model")
    os.environ[KEY_VARIABLE] = KEY
    try:
        with server_by_hand(request.param, policy.path, folder) as server:
            yield Attached(server, policy, folder)
    finally:
        del os.environ[KEY_VARIABLE]


@asynccontextmanager
async def engine_on(attached: Attached, policy: Policy, name: str, **rollout: object) -> AsyncIterator[Running]:
    """An engine attached to the server, which holds version 0 of the policy when this begins."""
    server = {
        "api_key_env": KEY_VARIABLE,
        "weights": "disk",
        "all_gone_timeout_seconds": 200.0,
    }
    server.update(rollout.pop("server", {}))  # type: ignore[call-overload]
    running = make_server_running(
        attached.server.kind,
        policy,
        attached.folder / name,
        ServerConfig(**server),
        base_urls=(attached.server.url,),
        **rollout,
    )
    try:
        await running.engine.start()
        await running.publish()
        yield running
    finally:
        await running.close()
    assert is_running(attached.server.process), "closing an engine ended a server that is not its own"


def fresh(attached: Attached) -> Policy:
    """The policy of the model on disk, without the versions of other tests."""
    return Policy(attached.policy.path)


@pytest.mark.parametrize("kv_on_update", ["recompute", "abort", "keep"])
async def test_requests_in_flight_go_on(attached: Attached, kv_on_update: str) -> None:
    # The same prompts for all engines: what one of them left in the server's cache must not reach the next. Each wave
    # has others, which no cache holds that is kept on purpose.
    rng = np.random.default_rng(2)
    async with engine_on(attached, fresh(attached), kv_on_update, kv_on_update=kv_on_update) as running:
        # While this process stands still, as on a busy machine, the server does not: a wave may end before its updates.
        for _ in range(10):
            first = running.version
            requests = [
                request(rng.integers(2, VOCAB, 1 + 4 * i), max_new_tokens=200, temperature=(1.0, 0.7)[i % 2], seed=i)
                for i in range(NUM_SLOTS)
            ]
            tasks = [asyncio.create_task(running.engine.agenerate(one)) for one in requests]
            for _ in range(2):
                await running.until(15 * NUM_SLOTS)
                await running.publish()
            responses = await asyncio.gather(*tasks)
            assert_wave(running, requests, responses, keeps=kv_on_update == "keep")
            seen = {span.version for response in responses for span in response.version_spans}
            if seen == {first, first + 1, first + 2}:
                return
        raise AssertionError(f"updates that met no request in flight: {seen}")


def assert_wave(running: Running, requests: list[ModelRequest], responses: list[ModelResponse], *, keeps: bool) -> None:
    """Each request got its whole answer, each token exact under its version; where keys and values are kept, under its
    first one alone."""
    for one, response in zip(requests, responses, strict=True):
        assert len(response.output_ids) == 200 and response.stop_reason == "length"
        temperature = one.sampling.temperature
        if keeps:
            assert_whole_spans(response)
            _, end, version = response.version_spans[0]
            expected = running.policy.logprobs(version, response, temperature)[:end]
            np.testing.assert_allclose(response.logprobs[:end], expected, atol=EXACT, rtol=0)
        else:
            running.policy.assert_exact(response, temperature)
    if keeps:
        mixed = [response for response in responses if len(response.version_spans) > 1]
        assert not any(running.policy.is_exact(response) for response in mixed), "nothing was kept"


async def test_a_server_that_hung_takes_part_again_with_the_weights_of_now(attached: Attached) -> None:
    async with engine_on(attached, fresh(attached), "hung", server={"stall_timeout_seconds": 5.0}) as running:
        processes = family(attached.server.process)
        tasks = [asyncio.create_task(running.engine.agenerate(request(max_new_tokens=300, seed=i))) for i in range(16)]
        await running.until(64)
        for process in processes:
            process.suspend()
        (replica,) = running.engine.replicas
        try:
            await until(lambda: replica.state != "serving", 60, "the hang is noticed")
            version = running.policy.change()
            await running.sync.stage(version)
        finally:
            for process in processes:
                process.resume()
        await until(lambda: replica.state == "serving", 300, "it takes part again")
        for response in await asyncio.gather(*tasks):
            assert len(response.output_ids) == 300 and response.version_spans[-1].version == version
            running.policy.assert_exact(response)


async def test_what_cannot_be_attached_says_why(attached: Attached, tmp_path: Path) -> None:
    os.environ["AREAL_X_TEST_WRONG_KEY"] = "not-the-key"
    try:
        with pytest.raises(EngineError, match=r"401|[Uu]nauthorized|key") as caught:
            async with engine_on(attached, fresh(attached), "key", server={"api_key_env": "AREAL_X_TEST_WRONG_KEY"}):
                pass
    finally:
        del os.environ["AREAL_X_TEST_WRONG_KEY"]
    assert "not-the-key" not in str(caught.value)
    with pytest.raises(EngineError, match="model"):
        async with engine_on(attached, fresh(attached), "name", server={"model_name": "another-model"}):
            pass


async def test_the_key_is_shown_nowhere(attached: Attached) -> None:
    assert KEY not in attached.server.log_path.read_text(errors="replace")
    for process in family(attached.server.process):
        assert KEY not in " ".join(process.cmdline())
