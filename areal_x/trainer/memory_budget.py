"""Whether trainer and servers that take turns on one GPU fit: checked before the first server starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from areal_x.api.config import ExperimentConfig, RewardModelConfig
from areal_x.api.errors import ConfigError

__all__ = ["TrainerBytes", "check_memory_budget", "check_reward_model_budget", "trainer_bytes"]

_FLOAT = 4
_LOGIT_COPIES = 3
_CONTEXT_BYTES = 2**30
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class TrainerBytes:
    """Device memory of the trainer by use, in bytes. Activations are not among it: they follow the batch."""

    parameters: int
    gradients: int
    moments: int
    """Adam's two."""
    reference: int
    logits: int
    """One chunk of a micro-batch: its logits, their softmax and their gradient."""
    staged: int = 0
    """Copies of the weights that servers of the same device read (``cuda_ipc``)."""

    @property
    def training(self) -> int:
        """In the middle of a step."""
        return self.resting + self.gradients + self.logits

    @property
    def resting(self) -> int:
        """While the servers generate; gradients and logits are given back by then."""
        return self.parameters + self.moments + self.reference + self.staged


def trainer_bytes(
    num_parameters: int, vocab_size: int, chunk_tokens: int, has_reference: bool, staged: int = 0
) -> TrainerBytes:
    """What training in float32 takes.

    Args:
        num_parameters: of the policy, tied ones once.
        vocab_size: columns of a logits row.
        chunk_tokens: ``train.logprob_chunk_tokens``, the rows that exist at once.
        has_reference: a frozen copy of the policy is kept for the KL term.
        staged: bytes of weights that wait on the device for the servers.
    """
    copy = _FLOAT * num_parameters
    logits = _LOGIT_COPIES * _FLOAT * vocab_size * chunk_tokens
    return TrainerBytes(copy, copy, 2 * copy, copy if has_reference else 0, logits, staged)


def check_memory_budget(config: ExperimentConfig, trainer: TrainerBytes, device_bytes: int) -> None:
    """Raise when a colocated run cannot fit the device, in the middle of a training step or while it generates.

    Args:
        trainer: what the trainer takes.
        device_bytes: all memory of the device.

    Raises:
        ConfigError: with the numbers, and what to change.
    """
    fraction = config.rollout.server.memory_fraction
    room = device_bytes - _CONTEXT_BYTES
    if trainer.training > room:
        raise ConfigError(
            f"rollout.colocated=true: a training step needs {_gib(trainer.training)} (parameters "
            f"{_gib(trainer.parameters)}, gradients {_gib(trainer.gradients)}, Adam {_gib(trainer.moments)}, "
            f"reference {_gib(trainer.reference)}, weights staged for the servers {_gib(trainer.staged)}, logits "
            f"{_gib(trainer.logits)}; activations not counted), and the "
            f"device has {_gib(device_bytes)}, less 1 GiB for the processes; take a smaller model, or lower "
            "train.logprob_chunk_tokens"
        )
    servers = int(fraction * device_bytes)
    if trainer.resting + servers > room:
        highest = max(0.0, (room - trainer.resting) / device_bytes)
        raise ConfigError(
            f"rollout.server.memory_fraction={fraction:g}: the servers' {_gib(servers)} and the trainer's "
            f"{_gib(trainer.resting)} (parameters, Adam, reference, staged weights) do not fit the device's "
            f"{_gib(device_bytes)}, less 1 GiB for the processes; use {int(highest * 100) / 100:g} or less, or a "
            "smaller model"
        )


def check_reward_model_budget(
    models: Mapping[str, RewardModelConfig], model_bytes: Mapping[str, int], trainer: TrainerBytes, device_bytes: int
) -> None:
    """Raise when the policy and its reward models cannot fit the device, while one scores or while the policy trains.

    Args:
        models: the reward models, by their keys in the configuration.
        model_bytes: the weights of each, on the device.
        trainer: what the policy takes there.
        device_bytes: all memory of the device.

    Raises:
        ConfigError: with the numbers, and what to change.
    """
    room = device_bytes - _CONTEXT_BYTES
    kept = {key: model_bytes[key] for key, model in models.items() if not model.offload}
    if kept and trainer.training + sum(kept.values()) > room:
        key = next(iter(kept))
        raise ConfigError(
            f"{key}.offload=false: a training step needs {_gib(trainer.training)} and the reward models that stay on "
            f"the device {_gib(sum(kept.values()))}, and it has {_gib(device_bytes)}, less 1 GiB for the processes; "
            "use offload=true"
        )
    for key in models:
        own = 0 if key in kept else model_bytes[key]
        needed = trainer.resting + sum(kept.values()) + own
        if needed > room:
            raise ConfigError(
                f"{key}.path: its weights take {_gib(model_bytes[key])}, and while it scores the policy keeps "
                f"{_gib(trainer.resting)} (parameters, Adam, reference, staged weights) on the device, which has "
                f"{_gib(device_bytes)}, less 1 GiB for the processes; use a smaller reward model, "
                f"{key}.dtype=bfloat16, more ranks, or train.cpu_offload=true"
            )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
