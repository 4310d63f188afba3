"""Servers that answer by an adapter: none of them makes a token before it has one."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from fake_server import FakeDialect, FakeLaunch, FakeServer, FakeTransport, check_response, make_engine

from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams
from areal_x.engine.servers.server_engine import ServerEngine


def first_load_and_token(server: FakeServer) -> tuple[bool, int]:
    """Whether it was given an adapter, and the requests that came so far."""
    return "load" in server.calls, len(server.bodies)


async def ask(engine: ServerEngine) -> ModelResponse:
    return await engine.agenerate(ModelRequest(np.array([2, 3, 4]), SamplingParams(max_new_tokens=20)))


async def test_the_adapter_comes_before_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDialect, "adapter", "policy")
    launch, transport = FakeLaunch(), FakeTransport()
    engine = make_engine([launch], transport)
    try:
        await engine.start()
        assert first_load_and_token(launch.server) == (False, 0)
        async with transport.lock:
            transport.write(3)
        await engine.update_weights(3)
        assert first_load_and_token(launch.server) == (True, 1), "one token shows that it works"
        assert check_response(await ask(engine), 20) == {3}
        await launch.kill()
        # The one that takes its place.
        assert check_response(await asyncio.wait_for(ask(engine), 20), 20) == {3}
        assert len(launch.servers) == 2
        calls = launch.server.calls
        assert calls.index("load") < calls.index("resume", calls.index("load")) and len(launch.server.bodies) == 2
    finally:
        await engine.close()
        for server in launch.servers:
            await server.die()


async def test_a_server_of_whole_weights_shows_at_once_that_it_works() -> None:
    launch = FakeLaunch()
    engine = make_engine([launch], FakeTransport())
    try:
        await engine.start()
        assert first_load_and_token(launch.server) == (False, 1)
    finally:
        await engine.close()
        await launch.server.die()
