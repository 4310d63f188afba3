"""What servers need of this machine, checked before anything starts: interpreter, version, GPUs, ports, key, model."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING

from areal_x.api.check_values import bad_value
from areal_x.api.config import ExperimentConfig, ModelConfig
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import SERVER_ENGINES, server_gpus, trainer_gpu

if TYPE_CHECKING:
    from areal_x.engine.servers.model_facts import ModelFacts

__all__ = ["check_server_environment"]


def check_server_environment(config: ExperimentConfig, trains: bool) -> None:
    """Raise when the configured servers could not be started here, or could not serve the model.

    Args:
        trains: whether a trainer takes part, which has a GPU of its own where there are GPUs.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    rollout = config.rollout
    if rollout.engine == "embedded":
        return
    _check_key(rollout.server.api_key_env)
    if rollout.engine not in SERVER_ENGINES:
        return
    on_cpu = False
    if not rollout.base_urls:
        _check_interpreter(config)
        on_cpu = not _uses_gpu(config.model)
        _check_devices(config, on_cpu, trains)
        _check_ports(config)
    _check_model(config, on_cpu)


def _check_key(name: str | None) -> None:
    if name is not None and not os.environ.get(name, "").strip():
        fix = "this environment variable is not set; put the servers' key into it, or set api_key_env=null if none is"
        raise bad_value("rollout.server.api_key_env", name, f"{fix} asked for")


def _check_interpreter(config: ExperimentConfig) -> None:
    from areal_x.engine.servers.environments import check_server_version, find_server_python

    kind = config.rollout.engine
    check_server_version(kind, find_server_python(kind, config.rollout.server.python))


def _uses_gpu(model: ModelConfig) -> bool:
    if model.device == "cpu":
        return False
    import torch

    if model.device != "auto" and not torch.cuda.is_available():
        raise bad_value("model.device", model.device, "this machine has no GPU that torch can use; use cpu or auto")
    return torch.cuda.is_available()


def _check_devices(config: ExperimentConfig, on_cpu: bool, trains: bool) -> None:
    server = config.rollout.server
    if not on_cpu:
        from areal_x.engine.servers.machine_checks import check_gpus

        gpus = server_gpus(config, trains)
        check_gpus(gpus)
        own = trainer_gpu(config)
        if trains and own in gpus and not config.rollout.colocated and server.weights in ("auto", "nccl"):
            fix = f"GPU {own} is the trainer's; name others, or set rollout.colocated=true so that they take turns"
            raise bad_value("rollout.server.gpus", gpus, fix)
        return
    needs_gpu = {
        "gpus": server.gpus is not None,
        "tensor_parallel": server.tensor_parallel > 1,
        "weights": server.weights in ("nccl", "cuda_ipc"),
        "quantization": server.quantization is not None,
    }
    for key, needs in needs_gpu.items():
        if needs:
            fix = "needs a GPU, and this machine has none that torch can use; leave it out"
            raise bad_value(f"rollout.server.{key}", getattr(server, key), fix)


def _check_ports(config: ExperimentConfig) -> None:
    server = config.rollout.server
    if server.port is not None:
        from areal_x.engine.servers.machine_checks import check_ports_free

        check_ports_free(server.host, range(server.port, server.port + server.num_servers))


def _check_model(config: ExperimentConfig, on_cpu: bool) -> None:
    """The model holds weights, has positions for ``max_length``, and a shape that the servers compute."""
    from areal_x.engine.servers.model_facts import check_servable, read_model_facts

    model, max_length = config.model, config.rollout.max_length
    if model.path is None:
        facts = _facts_of_new_model(model)
    else:
        facts = read_model_facts(model.path, model.trust_remote_code)
    if facts.max_length is not None and max_length > facts.max_length:
        or_more = ", or raise model.init.max_length" if model.path is None else ""
        fix = f"the model has {facts.max_length} positions; use {facts.max_length} or less{or_more}"
        raise bad_value("rollout.max_length", max_length, fix)
    check_servable(facts, config.rollout.engine, on_cpu)


def _facts_of_new_model(model: ModelConfig) -> ModelFacts:
    """Of what ``model.init`` will make; its vocabulary and size are not known yet."""
    from areal_x.engine.init_model import init_model
    from areal_x.engine.servers.model_facts import ModelFacts

    sizes = {name: parameter.default for name, parameter in inspect.signature(init_model).parameters.items()}
    sizes |= model.init or {}
    try:
        head_dim, max_length = int(sizes["head_dim"]), int(sizes["max_length"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.init={model.init}: its sizes must be whole numbers") from error
    return ModelFacts(0, head_dim, bool(sizes["tie_word_embeddings"]), (), max_length, 0, "Qwen3ForCausalLM")
