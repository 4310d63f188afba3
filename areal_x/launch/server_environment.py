"""What servers need of this machine, checked before anything starts: interpreter, version, GPUs, ports, key, model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from areal_x.api.check_values import bad_value
from areal_x.api.config import ExperimentConfig, ModelConfig
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import SERVER_ENGINES, trainer_gpus

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
    from areal_x.engine.servers.machine_checks import check_ports, read_key

    read_key(rollout.server)
    if rollout.engine not in SERVER_ENGINES:
        return
    on_cpu = False
    if not rollout.base_urls:
        _check_interpreter(config)
        on_cpu = _check_devices(config, trains)
        check_ports(rollout.server)
    _check_model(config, on_cpu)


def _check_interpreter(config: ExperimentConfig) -> None:
    from areal_x.engine.servers.environments import check_server_version, find_server_python

    kind = config.rollout.engine
    check_server_version(kind, find_server_python(kind, config.rollout.server.python))


def _check_devices(config: ExperimentConfig, trains: bool) -> bool:
    """Whether the servers compute on a CPU."""
    from areal_x.engine.servers.machine_checks import check_devices

    rollout = config.rollout
    if config.cluster.kind == "ray":
        # What its nodes have is known once they answer.
        return config.model.device == "cpu"
    num_ranks = config.train.num_ranks if trains else 0
    gpus = check_devices(config.model, rollout, num_ranks)
    # Some ways of weights work between processes of one GPU, which one trainer may share on purpose.
    if not rollout.colocated and (num_ranks > 1 or rollout.server.weights in ("auto", "nccl")):
        for own in trainer_gpus(config.model.device, num_ranks):
            if own in gpus:
                turns = ", or set rollout.colocated=true so that they take turns" if num_ranks == 1 else ""
                raise bad_value("rollout.server.gpus", list(gpus), f"GPU {own} is the trainer's; name others{turns}")
    return not gpus


def _check_model(config: ExperimentConfig, on_cpu: bool) -> None:
    """The model holds weights, has positions for ``max_length``, and a shape that the servers compute."""
    from areal_x.engine.servers.model_facts import check_length, check_servable, read_model_facts

    model = config.model
    if model.path is None:
        facts = _facts_of_new_model(model)
    else:
        facts = read_model_facts(model.path, model.trust_remote_code)
    check_length(facts, config.rollout.max_length, is_new=model.path is None)
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
