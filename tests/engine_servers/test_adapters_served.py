"""Servers that answer by an adapter: none of them makes a token before it has one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_server import FakeDialect, FakeLaunch, FakeServer, FakeTransport, check_response, make_engine

from areal_x.api.config import ModelConfig, RolloutConfig, ServerConfig
from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams
from areal_x.engine.init_model import init_model
from areal_x.engine.servers.build import build_server_engine
from areal_x.engine.servers.server_engine import ServerEngine
from areal_x.engine.servers.vllm_command import vllm_command
from areal_x.engine.transfer.lora import AdapterFacts, LoraTransport


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


async def test_servers_of_adapters_are_started_with_room_for_them(tmp_path: Path) -> None:
    python = tmp_path / "server-python"
    python.write_text('#!/bin/sh\necho \'{"vllm": "0.32.0"}\'\n')
    python.chmod(0o755)
    path = init_model(tmp_path / "model", tokenizer="characters", vocab_size=128, max_length=64)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = [(f"{stem}.lora_A.weight", torch.zeros(12, 8)), (f"{stem}.lora_B.weight", torch.zeros(8, 12))]
    transport = LoraTransport(tensors, AdapterFacts(12, 8.0, ("q_proj",), str(path)), directory=tmp_path / "weights")
    rollout = RolloutConfig(engine="vllm", max_length=64, server=ServerConfig(python=str(python), weights="lora"))
    engine = build_server_engine(
        ModelConfig(device="cpu"), rollout, str(path), log_dir=tmp_path, seed=1, transport=transport
    )
    (replica,) = engine.replicas
    assert replica.dialect.adapter == "policy"
    argv = vllm_command(replica.launch._settings).argv  # type: ignore[attr-defined]
    assert argv[argv.index("--max-lora-rank") + 1] == "16" and "--enable-lora" in argv
    transport.close()
