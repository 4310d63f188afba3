"""Checks of the inference engine's settings: ``rollout.engine``, ``base_urls``, ``colocated`` and ``server``."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from areal_x.api.check_values import above_zero, at_least, bad_value, one_of
from areal_x.api.config import ExperimentConfig, ModelConfig, RolloutConfig, ServerConfig
from areal_x.api.errors import ConfigError

__all__ = [
    "ENGINES",
    "SERVER_ENGINES",
    "WEIGHT_WAYS",
    "check_address",
    "check_engine",
    "check_gpu_numbers",
    "check_trains",
    "check_way",
    "is_loopback",
    "server_gpus",
    "trainer_gpus",
]

SERVER_ENGINES = ("sglang", "vllm")
"""Inference servers that a run can train with."""
ENGINES = ("embedded", "openai", *SERVER_ENGINES)
"""Inference back ends that can be chosen (``rollout.engine``)."""
WEIGHT_WAYS = ("cuda_ipc", "disk", "gloo", "lora", "nccl", "shared_memory")
"""Ways that weights take to servers (``rollout.server.weights``), beside ``auto``."""
_LAUNCH_KEYS = (
    "python",
    "num_servers",
    "tensor_parallel",
    "gpus",
    "host",
    "port",
    "public",
    "memory_fraction",
    "kv_cache_gib",
    "stream_interval",
    "max_restarts",
    "args",
    "env",
)
"""Keys of ``rollout.server`` that say how servers are started."""
_OWN_FLAGS = {
    "--admin-api-key": "rollout.server.api_key_env",
    "--api-key": "rollout.server.api_key_env",
    "--host": "rollout.server.host",
    "--model-path": "model.path",
    "--port": "rollout.server.port",
    "--served-model-name": "model.path",
}
_LAST_PORT = 65535


def check_engine(config: ExperimentConfig) -> None:
    """Raise for the first setting of the inference engine that cannot work.

    Raises:
        ConfigError: one line with the key, the value and what would be valid.
    """
    rollout = config.rollout
    one_of("rollout.engine", rollout.engine, ENGINES)
    one_of("rollout.kv_on_update", rollout.kv_on_update, ("recompute", "keep", "abort"))
    _check_base_urls(rollout)
    if rollout.engine in SERVER_ENGINES:
        _check_numbers(rollout)
        check_address(rollout.server)
        check_gpu_numbers(config.model, rollout.server)
        check_way(rollout, rollout.server.weights, config.model.device == "cpu")
        _check_quantization(config)
        _check_model_name(rollout)
        _check_flags(rollout.server)
    else:
        _check_no_servers(rollout)
    _check_key_name(rollout.server.api_key_env)
    if rollout.engine == "openai":
        _check_endpoint(config)


def check_trains(rollout: RolloutConfig) -> None:
    """Raise for an engine that nothing can be trained with.

    Raises:
        ConfigError: ``rollout.engine=openai``.
    """
    if rollout.engine == "openai":
        fix = (
            "is for areal-x eval: its replies are text without the token ids and log-probabilities that training needs"
        )
        raise bad_value("rollout.engine", "openai", f"{fix}; use vllm, sglang or embedded")


def server_gpus(model: ModelConfig, rollout: RolloutConfig, num_ranks: int) -> list[int]:
    """The GPUs that servers take where there are GPUs: those that are named; by default the first ones but the
    trainer's, or, colocated, the trainer's own and then the first others.

    Args:
        num_ranks: of the trainer, each with a GPU; 0: nothing is trained.
    """
    server = rollout.server
    if server.gpus is not None:
        return list(server.gpus)
    needed = server.num_servers * server.tensor_parallel
    own = trainer_gpus(model.device, num_ranks)
    others = [gpu for gpu in range(needed + num_ranks) if gpu not in own]
    return ([*own, *others] if rollout.colocated else others)[:needed]


def trainer_gpus(device: str, num_ranks: int) -> range:
    """The GPUs of the trainer's ranks where there are GPUs: from that of ``model.device`` on."""
    first = int(device.partition(":")[2] or 0)
    return range(first, first + num_ranks)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _check_no_servers(rollout: RolloutConfig) -> None:
    engine, server = rollout.engine, rollout.server
    if rollout.kv_on_update == "abort":
        fix = "is for vllm and sglang; use recompute or keep"
        raise bad_value("rollout.kv_on_update", "abort", f"{fix} with rollout.engine={engine}")
    if rollout.colocated:
        fix = f"needs servers that can sleep, rollout.engine=vllm or sglang, not {engine}"
        raise bad_value("rollout.colocated", "true", fix)
    one_of("rollout.server.weights", server.weights, ("auto", *WEIGHT_WAYS))
    if server.quantization is not None:
        fix = f"weights are quantised for vllm and sglang, not for rollout.engine={engine}; set it to null"
        raise bad_value("rollout.server.quantization", server.quantization, fix)
    if rollout.engine == "embedded" and rollout.base_urls:
        fix = "the embedded engine runs in this run; use rollout.engine=vllm or sglang, or leave base_urls empty"
        raise bad_value("rollout.base_urls", rollout.base_urls, fix)


def _check_base_urls(rollout: RolloutConfig) -> None:
    seen: dict[tuple[object, ...], str] = {}
    for url in rollout.base_urls:
        parts = _parts(url)
        if "@" in url:
            raise ConfigError(
                "rollout.base_urls holds a user or a password (not shown); name the variable that holds the key with "
                "rollout.server.api_key_env"
            )
        if parts is None:
            raise bad_value("rollout.base_urls", url, "is not an address such as http://127.0.0.1:8000")
        if parts.query or parts.fragment:
            raise bad_value("rollout.base_urls", url.partition("?")[0], "must end before ? and #")
        if parts.path.strip("/") and rollout.engine != "openai":
            fix = f"has a path; write {parts.scheme}://{parts.netloc}, since the server's own routes begin there"
            raise bad_value("rollout.base_urls", url, fix)
        place = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), parts.path.rstrip("/"))
        if place in seen:
            raise bad_value("rollout.base_urls", url, f"is the same server as {seen[place]}; name each server once")
        seen[place] = url
    if rollout.base_urls:
        _check_nothing_is_started(rollout)


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if is_one and not re.search(r"\s", url) else None


def _check_nothing_is_started(rollout: RolloutConfig) -> None:
    default = ServerConfig()
    for key in _LAUNCH_KEYS:
        value = getattr(rollout.server, key)
        if value != getattr(default, key):
            fix = "says how to start servers, and rollout.base_urls names servers that run already; keep one of the two"
            raise bad_value(f"rollout.server.{key}", value, fix)
    if rollout.colocated:
        fix = "the run must start the servers itself, so that they can sleep; leave rollout.base_urls empty"
        raise bad_value("rollout.colocated", "true", fix)


def _check_numbers(rollout: RolloutConfig) -> None:
    server = rollout.server
    for name in ("num_servers", "tensor_parallel", "stream_interval"):
        at_least(f"rollout.server.{name}", getattr(server, name), 1)
    at_least("rollout.server.max_restarts", server.max_restarts, 0)
    for name in ("kv_cache_gib", *(f"{wait}_timeout_seconds" for wait in ("start", "stall", "update", "all_gone"))):
        above_zero(f"rollout.server.{name}", getattr(server, name))
    if not 0 < server.memory_fraction < 1:
        fix = "must be above 0 and below 1: the share of a GPU's memory that a server takes"
        raise bad_value("rollout.server.memory_fraction", server.memory_fraction, fix)
    num_servers = len(rollout.base_urls) or server.num_servers
    if rollout.num_slots < num_servers:
        fix = f"{num_servers} servers share these places; use {num_servers} or more"
        raise bad_value("rollout.num_slots", rollout.num_slots, fix)


def _check_model_name(rollout: RolloutConfig) -> None:
    if rollout.server.model_name is not None and not rollout.base_urls:
        fix = "is the name of a model at rollout.base_urls; servers that the run starts serve its own; set it to null"
        raise bad_value("rollout.server.model_name", rollout.server.model_name, fix)


def check_address(server: ServerConfig) -> None:
    """Refuse ports that there are not, and an address that others reach without leave and key.

    Raises:
        ConfigError: names ``rollout.server.host`` or ``port``, its value and what to use.
    """
    if server.port is not None:
        last = server.port + server.num_servers - 1
        if not 1 <= server.port <= last <= _LAST_PORT:
            fix = f"{server.num_servers} servers take the ports {server.port} to {last}; use 1 to {_LAST_PORT}"
            raise bad_value("rollout.server.port", server.port, fix)
    if not server.host or re.search(r"[\s/@]", server.host) or "://" in server.host:
        raise bad_value("rollout.server.host", repr(server.host), "name an address such as 127.0.0.1, without a scheme")
    if is_loopback(server.host):
        return
    if not server.public:
        fix = "other machines reach this address and could change the weights; use 127.0.0.1, or set"
        raise bad_value("rollout.server.host", server.host, f"{fix} rollout.server.public=true and api_key_env")
    if server.api_key_env is None:
        fix = "a server that other machines reach needs a key; set rollout.server.api_key_env to the variable with it"
        raise bad_value("rollout.server.host", server.host, fix)


def _check_key_name(name: str | None) -> None:
    if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        # What stands here by mistake is the key itself.
        raise ConfigError(
            "rollout.server.api_key_env (not shown) is no name of an environment variable, such as SERVER_KEY; put the "
            "key into the variable and the variable's name here"
        )


def check_gpu_numbers(model: ModelConfig, server: ServerConfig) -> None:
    """Refuse GPUs that do not fit the device, or the number of servers, whatever this machine has.

    Raises:
        ConfigError: names ``rollout.server.gpus`` or ``tensor_parallel``, its value and what to use.
    """
    on_cpu = model.device == "cpu"
    needed = server.num_servers * server.tensor_parallel
    if server.tensor_parallel > 1 and on_cpu:
        fix = "is a number of GPUs; use 1 with model.device=cpu"
        raise bad_value("rollout.server.tensor_parallel", server.tensor_parallel, fix)
    if server.gpus is None:
        return
    if on_cpu:
        raise bad_value("rollout.server.gpus", server.gpus, "model.device=cpu uses none; set it to null")
    if any(gpu < 0 for gpu in server.gpus) or len(set(server.gpus)) != len(server.gpus):
        raise bad_value("rollout.server.gpus", server.gpus, "must be different numbers from 0 up")
    if len(server.gpus) != needed:
        fix = f"{server.num_servers} servers with {server.tensor_parallel} GPUs each (tensor_parallel) take {needed}"
        raise bad_value("rollout.server.gpus", server.gpus, fix)


def check_way(rollout: RolloutConfig, way: str, on_cpu: bool) -> None:
    """Refuse a way that cannot work.

    Args:
        way: ``rollout.server.weights``, or what its ``auto`` stands for.
        on_cpu: trainer and servers compute on a CPU.

    Raises:
        ConfigError: names ``rollout.server.weights``, the way and what to use.
    """
    key = "rollout.server.weights"
    one_of(key, way, ("auto", *WEIGHT_WAYS))
    if way in ("nccl", "cuda_ipc") and on_cpu:
        raise bad_value(key, way, "needs a GPU, and servers compute on a CPU; use auto, shared_memory, gloo or disk")
    if way in ("nccl", "cuda_ipc", "lora", "shared_memory") and rollout.base_urls:
        raise bad_value(key, way, "needs servers that the run starts itself; use auto or disk with rollout.base_urls")
    if way == "lora":
        _check_adapters_served(rollout, on_cpu)
    far = [url for url in rollout.base_urls if not is_loopback(urlsplit(url).hostname or "")]
    if way == "gloo" and far:
        fix = f"reaches servers of this machine, and {far[0]} is on another; use disk, with a folder that both see"
        raise bad_value(key, way, fix)
    if way == "nccl" and rollout.colocated:
        raise bad_value(key, way, "two processes of one GPU cannot use it; use cuda_ipc with rollout.colocated=true")
    if way == "cuda_ipc" and not rollout.colocated:
        raise bad_value(key, way, "passes memory of one GPU on; use nccl, or set rollout.colocated=true")
    if way == "cuda_ipc" and rollout.server.num_servers > 1:
        servers = rollout.server.num_servers
        fix = f"only one of {servers} servers has the trainer's GPU; use shared_memory, or num_servers=1"
        raise bad_value(key, way, fix)


def _check_adapters_served(rollout: RolloutConfig, on_cpu: bool) -> None:
    key = "rollout.server.weights"
    if rollout.engine == "sglang" and on_cpu:
        raise bad_value(key, "lora", "SGLang serves adapters on a GPU only; use auto (merged weights), or vllm")
    if rollout.colocated:
        fix = "servers that sleep lose the base, and only adapters are sent; use auto with rollout.colocated=true"
        raise bad_value(key, "lora", fix)
    if rollout.server.quantization is not None:
        fix = (
            f"adapters are not served on a base in {rollout.server.quantization}; set rollout.server.quantization=null"
        )
        raise bad_value(key, "lora", fix)


def _check_quantization(config: ExperimentConfig) -> None:
    server = config.rollout.server
    if server.quantization is not None:
        one_of("rollout.server.quantization", server.quantization, ("fp8", "fp8_block"))
        if config.model.device == "cpu":
            fix = "8-bit floats need a GPU, and model.device=cpu; set it to null"
            raise bad_value("rollout.server.quantization", server.quantization, fix)


def _check_flags(server: ServerConfig) -> None:
    for flag in server.args:
        name = flag.partition("=")[0].replace("_", "-")  # Servers take both.
        if name in _OWN_FLAGS:
            # The value of --api-key would be a secret.
            raise ConfigError(f"rollout.server.args holds {name}; say it with {_OWN_FLAGS[name]}")
    for name in server.env:
        if not name or "=" in name or "\0" in name:
            raise bad_value("rollout.server.env", repr(name), "is no name of an environment variable")


def _check_endpoint(config: ExperimentConfig) -> None:
    urls, sampling = config.rollout.base_urls, config.evaluation.sampling
    if len(urls) != 1:
        fix = "rollout.engine=openai needs the one address of the endpoint, such as [http://127.0.0.1:8000/v1]"
        raise bad_value("rollout.base_urls", urls, fix)
    if sampling.top_k:
        fix = "OpenAI's protocol has no top_k; use 0, and top_p if samples are to be truncated"
        raise bad_value("evaluation.sampling.top_k", sampling.top_k, fix)
    if sampling.stop_token_ids:
        fix = "OpenAI's protocol knows no token ids; use evaluation.sampling.stop"
        raise bad_value("evaluation.sampling.stop_token_ids", sampling.stop_token_ids, fix)
