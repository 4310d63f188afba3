"""Engines of each kind behind one contract, with the policy that feeds them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from server_models import DEVICE, MAX_LENGTH, Policy

from areal_x.api.config import ModelConfig, RolloutConfig, ServerConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams
from areal_x.engine.inference import EmbeddedEngine
from areal_x.engine.servers.build import build_server_engine
from areal_x.engine.transfer.make_transport import choose_way, make_transport
from areal_x.engine.transfer.staging import LiveWeights
from areal_x.engine.weights import SharedWeights, StagedSync

__all__ = ["KINDS", "NUM_SLOTS", "SERVERS", "Running", "request", "start_running"]

SERVERS = ("vllm", "sglang")
KINDS = ("embedded", *SERVERS)
NUM_SLOTS = 64
SEED = 3


@dataclass
class Running:
    """A started engine and the policy that feeds it."""

    kind: str
    engine: InferenceEngine
    policy: Policy
    sync: StagedSync
    staging: Any
    log_dir: Path
    start_seconds: float = 0.0

    @property
    def version(self) -> int:
        """The version published last."""
        return max(self.policy.versions)

    async def publish(self) -> int:
        """Change the policy, stage it and publish it; returns the version."""
        version = self.policy.change()
        await self.sync.stage(version)
        await self.sync.publish(version)
        return version

    async def run(self, *requests: ModelRequest) -> list[ModelResponse]:
        """All of them at once, in order."""
        return await asyncio.gather(*map(self.engine.agenerate, requests))

    async def until(self, number: int, seconds: float = 400.0) -> None:
        """Return when the engine has generated so many tokens more than when it was called."""
        async with asyncio.timeout(seconds):
            aim = (await self.engine.health()).num_generated_tokens + number
            while (await self.engine.health()).num_generated_tokens < aim:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.engine.close()
        await self.engine.close()
        self.staging.close()


def request(ids: Any = (2, 3, 4), **sampling: Any) -> ModelRequest:
    """A request that runs to its ``max_new_tokens`` unless told otherwise."""
    return ModelRequest(np.asarray(ids, np.int32), SamplingParams(**{"ignore_eos": True, "seed": 1, **sampling}))


async def start_running(
    kind: str, policy: Policy, log_dir: Path, *, kv_on_update: str = "recompute", **server: Any
) -> Running:
    """Start an engine of ``kind`` on the policy's model; ``server`` are fields of ``ServerConfig``."""
    if kind == "embedded":
        weights = SharedWeights.create(policy.named_weights())
        engine: InferenceEngine = EmbeddedEngine(
            policy.path,
            num_slots=NUM_SLOTS,
            max_length=MAX_LENGTH,
            device=DEVICE,
            kv_on_update=kv_on_update,
            weights=weights,
            seed=SEED,
        )
        running = Running(
            kind, engine, policy, StagedSync(LiveWeights(policy.named_weights), weights, [engine]), weights, log_dir
        )
    else:
        config = ServerConfig(**({"stream_interval": 16} | server))
        running = make_server_running(kind, policy, log_dir, config, kv_on_update=kv_on_update)
    try:
        await running.engine.start()
    except BaseException:
        await running.close()
        raise
    return running


def make_server_running(
    kind: str, policy: Policy, log_dir: Path, server: ServerConfig, *, base_urls: tuple[str, ...] = (), **rollout: Any
) -> Running:
    """An engine of servers that is not started yet."""
    way = server.weights
    if way == "auto":
        way = choose_way(
            kind, on_cpu=DEVICE == "cpu", starts_servers=not base_urls, colocated=False, num_servers=server.num_servers
        )
    staging = make_transport(
        way,
        policy.named_weights(),
        engine=kind,
        dtype=torch.float32,
        directory=log_dir / "weights",
        timeout_seconds=server.update_timeout_seconds,
        model_path=str(policy.path),
    )
    config = RolloutConfig(
        engine=kind,
        base_urls=list(base_urls),
        server=server,
        num_slots=NUM_SLOTS,
        max_length=MAX_LENGTH,
        **rollout,
    )
    model = ModelConfig(path=str(policy.path), device=DEVICE)
    engine = build_server_engine(model, config, str(policy.path), log_dir=log_dir, seed=SEED, transport=staging)
    return Running(
        kind, engine, policy, StagedSync(LiveWeights(policy.named_weights), staging, [engine]), staging, log_dir
    )
