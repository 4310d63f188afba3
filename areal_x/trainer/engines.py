"""The configured inference engine, and the way in which new weights reach it.

| ``rollout.engine`` | engine | weights |
| --- | --- | --- |
| ``embedded`` | a process of the run | shared memory that it reads |
| ``vllm``, ``sglang`` | servers, started by the run or at ``base_urls`` | a transport (``rollout.server.weights``) |
| ``openai`` | an endpoint, for evaluation | none |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import torch

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import SERVER_ENGINES, check_way, server_gpus
from areal_x.engine.inference.embedded import EmbeddedEngine
from areal_x.engine.placement import LOOPBACK, LocalPlacement, Placement
from areal_x.engine.reward_model.scorer import resolve_dtype
from areal_x.engine.train.ranked_engine import RankedTrainEngine
from areal_x.engine.transfer.cuda_ipc import CudaIpcTransport
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.staging import LiveWeights, RankWeights, WeightSource
from areal_x.engine.transfer.transport import WeightTransport
from areal_x.engine.weights import SharedWeights, TensorSpec
from areal_x.trainer.memory_budget import (
    TrainerBytes,
    check_memory_budget,
    check_reward_model_budget,
    trainer_bytes,
)
from areal_x.trainer.models_beside import CriticModel
from areal_x.trainer.reward_models import LoopModel
from areal_x.trainer.roles import PolicyEngine

__all__ = [
    "check_device_budget",
    "check_reward_model_memory",
    "make_inference_engine",
    "needs_first_weights",
    "published_weights",
    "stage_weights",
]


def check_device_budget(
    config: ExperimentConfig,
    train_engine: PolicyEngine,
    staging: SharedWeights | WeightTransport,
    critic: CriticModel | None = None,
) -> None:
    """Whether colocated servers and this trainer fit the GPU that they share.

    Raises:
        ConfigError: they do not; with the numbers.
    """
    device = train_engine.facts.device
    if not config.rollout.colocated or device == "cpu":
        return
    # Of ``cuda_ipc``, on the same device; of all other ways that are left here, elsewhere.
    staged = 2 * staging.num_bytes if isinstance(staging, CudaIpcTransport) else 0
    needed = _trainer_bytes(config, train_engine, critic, staged)
    check_memory_budget(config, needed, torch.cuda.get_device_properties(device).total_memory)


def check_reward_model_memory(
    config: ExperimentConfig,
    train_engine: PolicyEngine,
    models: Sequence[LoopModel],
    critic: CriticModel | None = None,
) -> None:
    """Whether each reward model fits a GPU beside what the trained models keep there.

    Raises:
        ConfigError: one does not; with the numbers.
    """
    facts = train_engine.facts
    # The driver of a cluster may have no GPU to ask; its ranks find out when they load.
    if facts.device == "cpu" or not models or not torch.cuda.is_available():
        return
    device = torch.device(facts.device)
    check_reward_model_budget(
        {model.key: model.config for model in models},
        {m.key: m.files.num_parameters * resolve_dtype(m.config.dtype, device).itemsize for m in models},
        _trainer_bytes(config, train_engine, critic),
        torch.cuda.get_device_properties(device).total_memory,
    )


def _trainer_bytes(
    config: ExperimentConfig, train_engine: PolicyEngine, critic: CriticModel | None, staged: int = 0
) -> TrainerBytes:
    """What each rank keeps on its device of policy, reference and critic."""
    facts, train = train_engine.facts, config.train
    on_device = 0 if train.cpu_offload else 1
    return trainer_bytes(
        on_device * facts.num_parameters,
        facts.vocabulary_size,
        train.logprob_chunk_tokens,
        on_device * facts.num_reference_parameters,
        staged,
        num_critic_parameters=0 if critic is None else on_device * critic.get_num_parameters(),
        num_ranks=train.num_ranks,
        has_adapters=train.lora.rank > 0,
        moves_reference=config.reference.offload,
        moves_critic=config.critic.offload,
    )


def stage_weights(
    config: ExperimentConfig,
    train_engine: PolicyEngine,
    model_path: str,
    run_dir: Path,
    stack: AsyncExitStack,
    placement: Placement | None = None,
) -> SharedWeights | WeightTransport:
    """Room for the weights that the inference engine takes, of the type it computes in; freed with ``stack``.

    Args:
        placement: where servers are started. Default: here.

    Raises:
        ConfigError: the way of the weights does not reach all servers.
    """
    staging: SharedWeights | WeightTransport
    if config.rollout.engine in SERVER_ENGINES:
        staging = _transport(config, train_engine, model_path, run_dir, (placement or LocalPlacement()).address)
    else:
        staging = SharedWeights.of_layout(_layout(train_engine))
    stack.callback(staging.close)
    return staging


def _layout(train_engine: PolicyEngine, quantization: str | None = None) -> TensorLayout:
    """The weights as engines get them."""
    facts = train_engine.facts
    specs = [TensorSpec(name, shape, facts.inference_dtype) for name, shape in facts.weights]
    return TensorLayout.of_specs(specs, quantization=quantization)


def _transport(
    config: ExperimentConfig, train_engine: PolicyEngine, model_path: str, run_dir: Path, address: str
) -> WeightTransport:
    from areal_x.engine.transfer.make_transport import transport_of_layout

    server, facts = config.rollout.server, train_engine.facts
    way = _way(config, train_engine, address)
    if way == "lora":
        from areal_x.engine.transfer.lora import LoraTransport

        return LoraTransport(
            train_engine.named_adapters(),
            train_engine.adapter_facts,
            directory=run_dir / "weights",
            dtype=facts.inference_dtype,
        )
    return transport_of_layout(
        way,
        _layout(train_engine, server.quantization),
        device=torch.device(facts.device),
        engine=config.rollout.engine,
        num_ranks_per_server=server.tensor_parallel,
        directory=run_dir / "weights",
        timeout_seconds=server.update_timeout_seconds,
        model_path=model_path,
        from_ranks=isinstance(train_engine, RankedTrainEngine),
        address=address,
    )


def _way(config: ExperimentConfig, train_engine: PolicyEngine, address: str) -> str:
    """``rollout.server.weights``, or what its ``auto`` stands for; checked."""
    from areal_x.engine.transfer.make_transport import choose_way

    rollout, way = config.rollout, config.rollout.server.weights
    on_cpu = train_engine.facts.device == "cpu"
    # Ranks have their GPUs, but what this process stages it sends by itself.
    cannot_send = not on_cpu and not torch.cuda.is_available()
    if way == "auto":
        way = choose_way(
            rollout.engine,
            on_cpu or cannot_send,
            not rollout.base_urls,
            rollout.colocated,
            rollout.server.num_servers,
            from_ranks=isinstance(train_engine, RankedTrainEngine),
            one_machine=address == LOOPBACK,
        )
    check_way(rollout, way, on_cpu)
    if way == "nccl" and cannot_send:
        raise ConfigError(
            "rollout.server.weights=nccl: the run's own process sends the weights and sees no GPU; use auto, or start "
            "the run on a machine that has one"
        )
    if way == "shared_memory" and address != LOOPBACK:
        raise ConfigError(
            "rollout.server.weights=shared_memory: it reaches servers of this machine, and the cluster has them on "
            "others, too; use auto, or disk with a folder that all see"
        )
    return way


def needs_first_weights(config: ExperimentConfig) -> bool:
    """Whether the trainer's weights have to be published before the first request: a warm start has changed them,
    servers that ran before may hold any others, or requests name an adapter that servers do not have yet."""
    return config.starts_warm or bool(config.rollout.base_urls) or config.rollout.server.weights == "lora"


def published_weights(config: ExperimentConfig, train_engine: PolicyEngine) -> WeightSource:
    """What each publication copies out: all weights, or adapters alone. Of several ranks, each copies its own rows."""
    if config.rollout.server.weights == "lora":
        return LiveWeights(train_engine.named_adapters)
    if isinstance(train_engine, RankedTrainEngine):
        return RankWeights(train_engine.group)
    return LiveWeights(train_engine.named_weights)


def make_inference_engine(
    config: ExperimentConfig,
    model_path: str | None,
    staging: SharedWeights | WeightTransport | None,
    log_dir: Path,
    stack: AsyncExitStack,
    placement: Placement | None = None,
) -> InferenceEngine:
    """The configured inference engine, not yet started; it stops with ``stack``.

    Args:
        model_path: the model to load; ``None`` with an endpoint, which has its own.
        staging: where it takes new weights from; ``None``: it keeps those that it has (evaluation).
        log_dir: for what its processes print.
        placement: where servers are started. Default: here. The embedded engine is always a process of this machine.
    """
    engine = _make_engine(config, model_path, staging, log_dir, placement or LocalPlacement())
    stack.push_async_callback(engine.close)
    return engine


def _make_engine(
    config: ExperimentConfig,
    model_path: str | None,
    staging: SharedWeights | WeightTransport | None,
    log_dir: Path,
    placement: Placement,
) -> InferenceEngine:
    rollout = config.rollout
    if rollout.engine == "openai":
        from areal_x.engine.servers.machine_checks import read_key
        from areal_x.engine.servers.openai_engine import OpenAIEngine

        return OpenAIEngine(
            rollout.base_urls[0],
            rollout.server.model_name,
            api_key=read_key(rollout.server),
            max_concurrent=rollout.num_slots,
            timeout_seconds=rollout.episode_timeout_seconds,
        )
    assert model_path is not None
    if rollout.engine in SERVER_ENGINES:
        from areal_x.engine.servers.build import build_server_engine

        assert not isinstance(staging, SharedWeights)
        if torch.cuda.is_available() and config.model.device != "cpu" and not rollout.base_urls:
            gpus = server_gpus(config.model, rollout, config.train.num_ranks if staging is not None else 0)
            rollout = dataclasses.replace(rollout, server=dataclasses.replace(rollout.server, gpus=gpus))
        hosts = None if rollout.base_urls else placement.server_hosts(rollout.server.num_servers)
        return build_server_engine(
            config.model, rollout, model_path, log_dir=log_dir, seed=config.seed, transport=staging, hosts=hosts
        )
    assert staging is None or isinstance(staging, SharedWeights)
    return EmbeddedEngine(
        model_path,
        num_slots=rollout.num_slots,
        max_length=rollout.max_length,
        device=config.model.device,
        dtype=config.model.dtype,
        num_threads=rollout.num_threads,
        kv_on_update=rollout.kv_on_update,
        weights=staging,
        log_path=log_dir / "engine.log",
        seed=config.seed,
        trust_remote_code=config.model.trust_remote_code,
    )
