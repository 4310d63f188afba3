"""One vLLM server and the policy that feeds it, spoke to through the dialect alone."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from running_engines import request
from server_models import MAX_LENGTH, Policy, make_policy

from areal_x.api.records import ModelRequest, ModelResponse, VersionSpan
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import KvOnUpdate, ServerError, ServerLostError
from areal_x.engine.servers.environments import find_server_python
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.machine_checks import free_ports
from areal_x.engine.servers.server_process import ServerProcess
from areal_x.engine.servers.vllm_command import vllm_command
from areal_x.engine.servers.vllm_dialect import VllmDialect
from areal_x.engine.transfer.make_transport import make_transport
from areal_x.engine.transfer.transport import WeightTransport

__all__ = ["KEY", "Served", "serve", "until_ready"]

InFlight = asyncio.Task[ModelResponse]

KEY = "a-key-of-the-tests"
_START_SECONDS = 600.0


@dataclass
class Served:
    """A server, the policy whose weights it has, and shared memory between them."""

    policy: Policy
    client: ServerClient
    process: ServerProcess
    transport: WeightTransport
    folder: Path
    dialect: VllmDialect = field(default_factory=VllmDialect)
    num_requests: int = 0

    @property
    def version(self) -> int:
        """The version of the policy."""
        return max(self.policy.versions)

    def stage(self, transport: WeightTransport | None = None) -> int:
        """Change the policy and stage it; returns the version."""
        version = self.policy.change()
        (transport or self.transport).write(version, self.policy.named_weights())
        return version

    async def publish(self) -> int:
        """Change the policy, stage it, and update the server."""
        await self.dialect.pause(self.client, "recompute")
        return await self.update()

    async def update(self, kv_on_update: KvOnUpdate = "recompute") -> int:
        """The part of ``publish`` after the pause."""
        version = self.stage()
        await self.dialect.load(self.client, self.transport.load_order(), version, kv_on_update)
        await self.dialect.resume(self.client)
        return version

    async def run(self, wanted: ModelRequest, *, name: str | None = None, pieces: Any = None) -> ModelResponse:
        """One request to its end; ``pieces`` is a queue that gets each piece as it comes."""
        self.num_requests += 1
        ids = wanted.input_ids.tolist()
        sampling = wanted.sampling
        name = name or f"r{self.num_requests}"
        body = self.dialect.request_body(wanted, name, ids, sampling.max_new_tokens, sampling.seed)
        reader = self.dialect.reply_reader()
        output: list[int] = []
        logprobs: list[float] = []
        finish = None
        async for message in self.client.stream(self.dialect.generate_path, body):
            piece = reader.read(message)
            if piece is not None:
                output += piece.token_ids
                logprobs += piece.logprobs
                finish = piece.finish or finish
                if pieces is not None:
                    pieces.put_nowait(piece)
        assert finish is not None
        spans = [VersionSpan(*span) for span in finish.spans]
        return ModelResponse(
            name,
            wanted.input_ids,
            np.asarray(output, np.int32),
            np.asarray(logprobs, np.float32),
            spans,
            finish.reason,
        )

    async def in_flight(self, name: str, **sampling: Any) -> InFlight:
        """A long request that has begun to sample."""
        pieces: asyncio.Queue[Any] = asyncio.Queue()
        wanted = request((5, 6, 7, 8), **{"max_new_tokens": 400, **sampling})
        task = asyncio.get_running_loop().create_task(self.run(wanted, name=name, pieces=pieces))
        async with asyncio.timeout(300):
            await pieces.get()
        return task

    async def paused_in_flight(self, kv_on_update: KvOnUpdate = "recompute", **sampling: Any) -> InFlight:
        """A request that a pause met in the middle of its work, on the server that is paused now."""
        for _ in range(10):
            task = await self.in_flight(f"paused{self.num_requests}", **sampling)
            await self.dialect.pause(self.client, kv_on_update)
            # What it had already sampled by then arrives; on a loaded machine it may have been all.
            await asyncio.wait([task], timeout=0.5)
            if kv_on_update == "abort" and task.done() and (await task).stop_reason == "abort":
                return task
            if kv_on_update != "abort" and not task.done():
                return task
            await self.dialect.resume(self.client)
        raise AssertionError("no pause came before the end of a request")

    async def close(self) -> None:
        """Stop the server."""
        await self.client.close()
        await self.process.stop()
        self.transport.close()


async def serve(folder: Path, *, tied: bool = False, **settings: Any) -> Served:
    """Start a server on a new model; ``settings`` are fields of ``LaunchSettings``."""
    policy = make_policy(folder / "model", tied=tied)
    (port,) = free_ports("127.0.0.1", 1)
    command = vllm_command(
        LaunchSettings(
            find_server_python("vllm", None),
            str(policy.path),
            host="127.0.0.1",
            port=port,
            dtype="float32",
            max_length=MAX_LENGTH,
            num_slots=64,
            **{"weights": "shared_memory", "kv_cache_gib": 0.5, "api_key": KEY, "stream_interval": 16, **settings},
        )
    )
    transport = make_transport(
        "shared_memory",
        policy.named_weights(),
        engine="vllm",
        dtype=None,
        directory=folder / "weights",
        timeout_seconds=200,
    )
    process = ServerProcess(command.argv, {**os.environ, **command.env}, folder / "vllm.log")
    served = Served(policy, ServerClient(f"http://127.0.0.1:{port}", "", api_key=KEY), process, transport, folder)
    try:
        await until_ready(served)
        await served.dialect.set_version(served.client, 0)
    except BaseException:
        await served.close()
        raise
    return served


async def until_ready(served: Served) -> None:
    """Return when the server answers; fail with its last lines when it ends."""
    async with asyncio.timeout(_START_SECONDS):
        while True:
            assert served.process.status is None, served.process.tail()
            try:
                await served.dialect.facts(served.client)
                return
            except (ServerError, ServerLostError):
                await asyncio.sleep(0.5)
