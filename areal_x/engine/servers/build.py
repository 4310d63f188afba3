"""Makes a ``ServerEngine`` from a configuration; what can be wrong with model and machine is found before any start."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from areal_x.api.config import ModelConfig, RolloutConfig
from areal_x.engine.inference.stopping import has_tokenizer
from areal_x.engine.servers.dialect import KvOnUpdate, ServerDialect
from areal_x.engine.servers.environments import check_server_version, find_server_python
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.machine_checks import check_devices, check_ports, read_key
from areal_x.engine.servers.model_facts import ModelFacts, check_length, check_servable, read_model_facts
from areal_x.engine.servers.replica import Launch
from areal_x.engine.servers.server_engine import ServerEngine
from areal_x.engine.servers.server_host import HostedProcess, LocalHost, ServerHost
from areal_x.engine.servers.settings import EngineSettings
from areal_x.engine.servers.sglang_dialect import SglangDialect
from areal_x.engine.servers.vllm_dialect import VllmDialect
from areal_x.engine.transfer.lora import LoraTransport
from areal_x.engine.transfer.transport import WeightTransport

__all__ = ["RunningServer", "StartedServer", "build_server_engine"]

_KEY_BYTES = 32
_KV_ON_UPDATE: dict[str, KvOnUpdate] = {"recompute": "recompute", "keep": "keep", "abort": "abort"}


class RunningServer:
    """A server that somebody else runs."""

    restarts = False

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    async def __call__(self) -> tuple[str, HostedProcess | None]:
        """Its address."""
        return self.base_url, None


class StartedServer:
    """A server that this run starts, each time on a free port unless one is set.

    Args:
        kind: ``vllm`` or ``sglang``.
        settings: what it is started with; ``port`` 0 takes a free one.
        log_path: what it prints goes there.
        host: where it is started.
    """

    restarts = True

    def __init__(self, kind: str, settings: LaunchSettings, log_path: Path, host: ServerHost) -> None:
        self._kind = kind
        self._settings = settings
        self._log_path = log_path
        self._host = host

    async def __call__(self) -> tuple[str, HostedProcess | None]:
        """Start it; its address and its process."""
        return await self._host.start(self._kind, self._settings, self._log_path)


def build_server_engine(
    model: ModelConfig,
    rollout: RolloutConfig,
    model_path: str,
    *,
    log_dir: Path,
    seed: int,
    transport: WeightTransport | None,
    initial_version: int = 0,
    hosts: Sequence[ServerHost] | None = None,
) -> ServerEngine:
    """The engine of a run. Nothing starts before its ``start``.

    Args:
        model_path: the model that the servers load, whose weights are of ``initial_version``.
        log_dir: each server that is started here writes a log there.
        seed: derives the seeds of requests that have none.
        transport: how new weights reach the servers; ``None`` where they never change.
        hosts: where each server is started. Default: all on this machine.

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
        hosts = hosts or [LocalHost()] * server.num_servers
        launches = _launches(model, rollout, model_path, facts, log_dir, seed, transport, key, hosts)
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
    adapter = transport.facts.name if isinstance(transport, LoraTransport) else None
    dialect: ServerDialect = VllmDialect(adapter, plain) if kind == "vllm" else SglangDialect(adapter)
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
    hosts: Sequence[ServerHost],
) -> list[StartedServer]:
    """The servers to start, each checked against this machine, or that of its host."""
    server, kind = rollout.server, rollout.engine
    gpus = _gpus_of_servers(model, rollout, hosts)
    check_servable(facts, kind, on_cpu=not gpus[0])
    ports = check_ports(server)
    python = find_server_python(kind, server.python)
    check_server_version(kind, python)
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
                gpus=gpus[index],
                num_threads=rollout.num_threads,
                seed=seed,
                weights="disk" if transport is None else transport.way,
                kv_on_update=rollout.kv_on_update,
                quantization=server.quantization,
                memory_fraction=server.memory_fraction,
                kv_cache_gib=server.kv_cache_gib,
                stream_interval=server.stream_interval,
                can_sleep=rollout.colocated,
                lora_rank=transport.facts.rank if isinstance(transport, LoraTransport) else 0,
                trust_remote_code=model.trust_remote_code,
                api_key=key,
                args=tuple(server.args),
                env=tuple(server.env.items()),
            ),
            log_dir / f"{kind}-{index}.log",
            hosts[index],
        )
        for index, port in enumerate(ports)
    ]


def _gpus_of_servers(model: ModelConfig, rollout: RolloutConfig, hosts: Sequence[ServerHost]) -> list[tuple[int, ...]]:
    """The GPUs of each server, on its host."""
    given = [host.gpus for host in hosts]
    if None not in given:
        return [gpus or () for gpus in given]
    # Who trains on a GPU, too, has named the others.
    gpus = check_devices(model, rollout, num_ranks=0)
    width = rollout.server.tensor_parallel
    return [gpus[index * width : (index + 1) * width] for index in range(rollout.server.num_servers)]
