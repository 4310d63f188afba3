"""What training needs of this machine, checked before anything starts: GPUs for all ranks, and memory for the model."""

from __future__ import annotations

from pathlib import Path

from areal_x.api.check_values import bad_value
from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import trainer_gpus

__all__ = ["check_evaluation_device", "check_trainer_environment", "host_bytes"]

_SMALL_BYTES = 2**28
"""Models of less than this fit wherever this package runs."""


def check_trainer_environment(config: ExperimentConfig) -> None:
    """Raise when this machine has no device for a rank, or too little memory for the policy.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    if config.cluster.kind == "ray":
        return  # What its nodes have is known once they answer.
    gpus = _check_gpus(config.model.device, config.train.num_ranks)
    _check_memory(config, gpus)


def check_evaluation_device(config: ExperimentConfig) -> None:
    """Raise when this machine has no device for the engine of an evaluation that runs in it.

    Raises:
        ConfigError: as ``check_trainer_environment``.
    """
    if config.cluster.kind == "local" and config.rollout.engine == "embedded":
        _check_gpus(config.model.device, 1)


def _check_gpus(device: str, num_ranks: int) -> list[int]:
    """The GPUs that ``num_ranks`` processes take; empty on a CPU, and where nothing asks for torch to be loaded to find
    out."""
    if device == "cpu" or (device == "auto" and not Path("/dev/nvidiactl").exists()):
        return []
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there and device == "auto":
        return []
    if not there:
        raise bad_value("model.device", device, "this machine has no GPU that torch can use; use cpu or auto")
    gpus = trainer_gpus(device, num_ranks)
    if gpus[-1] >= there:
        wanted = f"GPU {gpus[0]}" if num_ranks == 1 else f"the GPUs {gpus[0]} to {gpus[-1]}"
        key, value = ("model.device", device) if num_ranks == 1 else ("train.num_ranks", num_ranks)
        raise bad_value(key, value, f"takes {wanted}, and this machine has {there}, numbered from 0")
    return list(gpus)


def _check_memory(config: ExperimentConfig, gpus: list[int]) -> None:
    """The policy and its optimiser, divided among the ranks, fit."""
    from areal_x.engine.servers.model_facts import read_model_facts
    from areal_x.trainer.memory_budget import check_trainer_memory, trainer_bytes

    model, train = config.model, config.train
    if model.path is None:
        return  # What ``model.init`` makes is small.
    try:
        facts = read_model_facts(model.path, model.trust_remote_code)
    except ConfigError:
        # A hub name may be in the cache in a form that these facts are not read from; loading it says if it is not.
        if Path(model.path).expanduser().is_dir():
            raise
        return
    if facts.num_bytes < _SMALL_BYTES:
        return
    has_adapters = train.lora.rank > 0
    # Below adapters lies the reference itself. Models of another size are taken for as large as the policy.
    has_reference = config.uses_reference and not (has_adapters and config.reference.path is None)
    needed = trainer_bytes(
        facts.num_parameters,
        facts.vocab_size,
        train.logprob_chunk_tokens,
        num_reference_parameters=facts.num_parameters if has_reference else 0,
        num_critic_parameters=facts.num_parameters if config.uses_critic else 0,
        num_ranks=train.num_ranks,
        has_adapters=has_adapters,
        moves_reference=config.reference.offload and bool(gpus),
        moves_critic=config.critic.offload and bool(gpus),
    )
    on_host = not gpus or train.cpu_offload
    check_trainer_memory(config, needed, host_bytes() if on_host else _device_bytes(gpus[0]), on_host)


def _device_bytes(gpu: int) -> int:
    import torch

    return int(torch.cuda.get_device_properties(gpu).total_memory)


def host_bytes() -> int | None:
    """Memory that this machine, or this container, can still give; ``None`` where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))
