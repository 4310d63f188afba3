"""Whether trainer and servers that take turns on one GPU fit: checked before the first server starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from areal_x.api.config import ExperimentConfig, RewardModelConfig
from areal_x.api.errors import ConfigError

__all__ = ["TrainerBytes", "check_memory_budget", "check_reward_model_budget", "check_trainer_memory", "trainer_bytes"]

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
    critic: int = 0
    """The critic's parameters and Adam's moments of them; its gradients are a third of it more."""
    moves_reference: bool = False
    """Whether the reference is on the device while it is used only."""
    moves_critic: bool = False
    """Whether the critic is."""

    @property
    def training(self) -> int:
        """In the middle of a step, in which policy, reference and critic compute by turns."""
        policy = self.gradients + self.logits
        reference = self.logits + (self.reference if self.moves_reference else 0)
        critic = self.critic // 3 + (self.critic if self.moves_critic else 0)
        return self.resting + max(policy, reference, critic)

    @property
    def resting(self) -> int:
        """While the servers generate; gradients and logits are given back by then."""
        kept = 0 if self.moves_reference else self.reference
        kept += 0 if self.moves_critic else self.critic
        return self.parameters + self.moments + kept + self.staged

    @property
    def beside(self) -> str:
        """The critic, for a message; empty without one."""
        return f"critic and its Adam {_gib(self.critic)}, " if self.critic else ""

    @property
    def offload_hint(self) -> str:
        """What of the models beside the policy could leave the device, for a message."""
        movable = {
            "reference.offload=true": self.reference and not self.moves_reference,
            "critic.offload=true": self.critic and not self.moves_critic,
        }
        return "".join(f", or use {setting}" for setting, helps in movable.items() if helps)


def trainer_bytes(
    num_parameters: int,
    vocab_size: int,
    chunk_tokens: int,
    num_reference_parameters: int = 0,
    staged: int = 0,
    *,
    num_critic_parameters: int = 0,
    num_ranks: int = 1,
    has_adapters: bool = False,
    moves_reference: bool = False,
    moves_critic: bool = False,
) -> TrainerBytes:
    """What training in float32 takes on each rank. What is gathered for the moment that it is used is not among it.

    Args:
        num_parameters: of the policy, tied ones once.
        vocab_size: columns of a logits row.
        chunk_tokens: ``train.logprob_chunk_tokens``, the rows that exist at once.
        num_reference_parameters: of a reference of its own, which the KL term needs; 0: there is none.
        staged: bytes of weights that wait on the device for the servers.
        num_critic_parameters: of the critic; 0: there is none.
        num_ranks: that the weights are divided among.
        has_adapters: adapters alone are trained; what they take is too little to count.
        moves_reference, moves_critic: see ``TrainerBytes`` (``reference.offload``, ``critic.offload``).
    """
    numbers = (num_parameters, num_reference_parameters, num_critic_parameters)
    parameters, reference, critic = (_FLOAT * -(-number // num_ranks) for number in numbers)
    trained = 0 if has_adapters else parameters
    logits = _LOGIT_COPIES * _FLOAT * vocab_size * chunk_tokens
    return TrainerBytes(
        parameters,
        trained,
        2 * trained,
        reference,
        logits,
        staged,
        critic=3 * critic,
        moves_reference=moves_reference,
        moves_critic=moves_critic,
    )


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
            f"reference {_gib(trainer.reference)}, {trainer.beside}weights staged for the servers "
            f"{_gib(trainer.staged)}, logits {_gib(trainer.logits)}; activations not counted), and the "
            f"device has {_gib(device_bytes)}, less 1 GiB for the processes; take a smaller model, or lower "
            f"train.logprob_chunk_tokens{trainer.offload_hint}"
        )
    servers = int(fraction * device_bytes)
    if trainer.resting + servers > room:
        highest = max(0.0, (room - trainer.resting) / device_bytes)
        raise ConfigError(
            f"rollout.server.memory_fraction={fraction:g}: the servers' {_gib(servers)} and the trainer's "
            f"{_gib(trainer.resting)} (parameters, Adam, reference, critic, staged weights) do not fit the device's "
            f"{_gib(device_bytes)}, less 1 GiB for the processes; use {int(highest * 100) / 100:g} or less, or a "
            f"smaller model{trainer.offload_hint}"
        )


def check_trainer_memory(
    config: ExperimentConfig, rank: TrainerBytes, available_bytes: int | None, on_host: bool
) -> None:
    """Raise when weights, gradients and optimiser alone do not fit: activations come on top.

    Args:
        rank: what each rank takes.
        available_bytes: of a GPU, which one rank has, or of the host, which all share; ``None``: not known.
        on_host: which of the two.

    Raises:
        ConfigError: with the numbers, and what to change.
    """
    num_ranks = config.train.num_ranks
    shares = num_ranks if on_host else 1
    needed = shares * (rank.training if not config.train.cpu_offload else rank.training - rank.logits)
    if available_bytes is None or needed <= available_bytes:
        return
    of_rank = "" if num_ranks == 1 else f" for each of {num_ranks} ranks"
    has = f"this machine has {_gib(available_bytes)} left for" if on_host else f"a GPU has {_gib(available_bytes)} for"
    more = "train.lora.rank=16" if on_host else "more train.num_ranks, train.cpu_offload=true, train.lora.rank=16"
    raise ConfigError(
        f"model.path={config.model.path}: training it takes {_gib(rank.training)}{of_rank} (parameters "
        f"{_gib(rank.parameters)}, gradients {_gib(rank.gradients)}, Adam {_gib(rank.moments)}, reference "
        f"{_gib(rank.reference)}, {rank.beside}logits {_gib(rank.logits)}; activations not counted), and {has} "
        f"{'all of them' if shares > 1 else 'it'}; use a smaller model, {more}, or lower train.logprob_chunk_tokens"
        f"{'' if on_host else rank.offload_hint}"
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
                f"{_gib(trainer.resting)} (parameters, Adam, reference, critic, staged weights) there; the device has "
                f"{_gib(device_bytes)}, less 1 GiB for the processes; use a smaller reward model, "
                f"{key}.dtype=bfloat16, more ranks, or train.cpu_offload=true"
            )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
