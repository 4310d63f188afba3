"""Makes a ``ServerEngine`` from a configuration; what can be wrong with model and machine is found before any start."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from areal_x.api.config import ModelConfig, RolloutConfig
from areal_x.engine.inference.stopping import has_tokenizer
from areal_x.engine.servers.dialect import KvOnUpdate, ServerDialect
from areal_x.engine.servers.environments import check_server_version, find_server_python
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.machine_checks import check_devices, check_ports, free_ports, read_key
from areal_x.engine.servers.model_facts import ModelFacts, check_length, check_servable, read_model_facts
from areal_x.engine.servers.replica import Launch
from areal_x.engine.servers.server_engine import ServerEngine
from areal_x.engine.servers.server_process import ServerProcess
from areal_x.engine.servers.settings import EngineSettings
from areal_x.engine.servers.sglang_command import sglang_command
from areal_x.engine.servers.sglang_dialect import SglangDialect
from areal_x.engine.servers.vllm_command import vllm_command
from areal_x.engine.servers.vllm_dialect import VllmDialect
from areal_x.engine.transfer.transport import WeightTransport

__all__ = ["RunningServer", "StartedServer", "build_server_engine"]

_KEY_BYTES = 32
_COMMANDS = {"vllm": vllm_command, "sglang": sglang_command}
_WRITES_MODEL = threading.Lock()
"""Servers that start at once need the same quantized copy of the model."""
_KV_ON_UPDATE: dict[str, KvOnUpdate] = {"recompute": "recompute", "keep": "keep", "abort": "abort"}


class RunningServer:
    """A server that somebody else runs."""

    restarts = False

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    async def __call__(self) -> tuple[str, ServerProcess | None]:
        """Its address."""
        return self.base_url, None


class StartedServer:
    """A server that this run starts, each time on a free port unless one is set.

    Args:
        kind: ``vllm`` or ``sglang``.
        settings: what it is started with; ``port`` 0 takes a free one.
        log_path: what it prints goes there.
        given: free ports given to servers so far, shared by those of one engine: it takes seconds until a server has
            its own.
    """

    restarts = True

    def __init__(self, kind: str, settings: LaunchSettings, log_path: Path, given: set[int]) -> None:
        self._command = _COMMANDS[kind]
        self._settings = settings
        self._log_path = log_path
        self._given = given

    async def __call__(self) -> tuple[str, ServerProcess | None]:
        """Start it; its address and its process."""
        settings = await asyncio.to_thread(_with_quantized_model, self._settings, self._log_path.parent)
        port = settings.port or self._free_port()
        command = self._command(replace(settings, port=port))
        env = {**os.environ, **command.env}
        process = await asyncio.to_thread(ServerProcess, command.argv, env, self._log_path)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        return f"http://{host}:{port}", process

    def _free_port(self) -> int:
        # As many as have been given, and one more: at least one of them is new.
        free = free_ports(self._settings.host, len(self._given) + 1)
        port = next(port for port in free if port not in self._given)
        self._given.add(port)
        return port


def _with_quantized_model(settings: LaunchSettings, log_dir: Path) -> LaunchSettings:
    """Servers of eight bits start from a copy in eight bits, one for all: its weights are served until the first
    update."""
    if settings.quantization is None:
        return settings
    import torch

    from areal_x.engine.transfer.quantized_checkpoint import write_quantized_checkpoint

    target = log_dir / f"{settings.quantization}.model"
    with _WRITES_MODEL:
        if not target.exists():
            log_dir.mkdir(parents=True, exist_ok=True)
            dtype = getattr(torch, settings.dtype)
            write_quantized_checkpoint(settings.model_path, target, settings.quantization, dtype)
    return replace(settings, model_path=str(target))


def build_server_engine(
    model: ModelConfig,
    rollout: RolloutConfig,
    model_path: str,
    *,
    log_dir: Path,
    seed: int,
    transport: WeightTransport | None,
    initial_version: int = 0,
) -> ServerEngine:
    """The engine of a run. Nothing starts before its ``start``.

    Args:
        model_path: the model that the servers load, whose weights are of ``initial_version``.
        log_dir: each server that is started here writes a log there.
        seed: derives the seeds of requests that have none.
        transport: how new weights reach the servers; ``None`` where they never change.

    Raises:
        ConfigError: model, servers' version, ports, GPUs or addresses do not fit; the message names the key.
    """
    facts = read_model_facts(model_path, model.trust_remote_code)
    server, kind = rollout.server, rollout.engine
    check_length(facts, rollout.max_length, is_new=model.path is None and bool(model.init))
    launches: Sequence[Launch]
    if rollout.base_urls:
        key = read_key(server)
        launches = [RunningServer(url) for url in rollout.base_urls]
    else:
        key = read_key(server) or secrets.token_urlsafe(_KEY_BYTES)
        launches = _launches(model, rollout, model_path, facts, log_dir, seed, transport, key)
    settings = EngineSettings(
        vocab_size=facts.vocab_size,
        max_length=rollout.max_length,
        num_slots=rollout.num_slots,
        eos_ids=facts.eos_ids,
        seed=seed,
        kv_on_update=_KV_ON_UPDATE[rollout.kv_on_update],
        initial_version=initial_version,
        model_name=server.model_name or "" if rollout.base_urls else "",
        model_path=model_path,
        has_tokenizer=has_tokenizer(model_path),
        trust_remote_code=model.trust_remote_code,
        api_key=key,
        start_timeout_seconds=server.start_timeout_seconds,
        stall_timeout_seconds=server.stall_timeout_seconds,
        update_timeout_seconds=server.update_timeout_seconds,
        all_gone_timeout_seconds=server.all_gone_timeout_seconds,
        max_restarts=server.max_restarts,
    )
    # How often a server sends messages is known of those that are started here.
    plain = 0 if rollout.base_urls else server.stream_interval
    dialect: ServerDialect = VllmDialect(max_plain_tokens=plain) if kind == "vllm" else SglangDialect()
    return ServerEngine(dialect, launches, settings, transport)


def _launches(
    model: ModelConfig,
    rollout: RolloutConfig,
    model_path: str,
    facts: ModelFacts,
    log_dir: Path,
    seed: int,
    transport: WeightTransport | None,
    key: str,
) -> list[StartedServer]:
    """The servers to start, each checked against this machine."""
    server, kind = rollout.server, rollout.engine
    # Who trains on a GPU, too, has named the others.
    gpus = check_devices(model, rollout, trains=False)
    check_servable(facts, kind, on_cpu=not gpus)
    ports = check_ports(server)
    python = find_server_python(kind, server.python)
    check_server_version(kind, python)
    given: set[int] = set()
    return [
        StartedServer(
            kind,
            LaunchSettings(
                python=python,
                model_path=model_path,
                host=server.host,
                port=port,
                dtype=model.dtype,
                max_length=rollout.max_length,
                num_slots=-(-rollout.num_slots // server.num_servers),
                gpus=tuple(gpus[index * server.tensor_parallel : (index + 1) * server.tensor_parallel]),
                num_threads=rollout.num_threads,
                seed=seed,
                weights="disk" if transport is None else transport.way,
                kv_on_update=rollout.kv_on_update,
                quantization=server.quantization,
                memory_fraction=server.memory_fraction,
                kv_cache_gib=server.kv_cache_gib,
                stream_interval=server.stream_interval,
                can_sleep=rollout.colocated,
                trust_remote_code=model.trust_remote_code,
                api_key=key,
                args=tuple(server.args),
                env=tuple(server.env.items()),
            ),
            log_dir / f"{kind}-{index}.log",
            given,
        )
        for index, port in enumerate(ports)
    ]
