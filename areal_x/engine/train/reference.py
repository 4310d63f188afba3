"""The reference model: a frozen policy that the trained one is kept near.

| ``reference`` | the reference is |
| --- | --- |
| nothing set | the policy before the first step (after a warm start, if there is one) |
| ``path`` | that model |
| nothing set, with ``train.lora`` | the base below the adapters: nothing is kept twice |
| ``ema_decay`` | after each update, ``decay * reference + (1 - decay) * policy``: a mean of earlier policies |

Its passes are without gradient. Every rank holds its own rows, as of the policy, so following it needs no exchange.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from areal_x.api.config import ModelConfig, ReferenceConfig, TrainConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.lora import adapters_off
from areal_x.engine.train.moved_tensors import make_home, present
from areal_x.engine.train.packed_policy import PackedPolicy
from areal_x.engine.train.packing import MicroBatch
from areal_x.engine.train.policy import load_policy, resolve_device
from areal_x.engine.train.sharding import free_gathered, local_rows

__all__ = ["Reference"]


class Reference:
    """The reference of ``policy``. Its weights are on the device inside ``present`` only, where ``offload`` says so.

    Args:
        policy: that is trained, as it was loaded.
        model_path: of that policy.

    Raises:
        ConfigError: ``reference.path`` cannot be loaded, or cannot follow this policy.
    """

    def __init__(
        self,
        policy: PackedPolicy,
        model_path: Path | str,
        reference: ReferenceConfig,
        model: ModelConfig,
        train: TrainConfig,
        ranks: RankContext = ONE_RANK,
    ) -> None:
        self._policy, self._config = policy, reference
        self.module: PackedPolicy | None = None
        """Weights of its own; ``None`` where they lie below the policy's adapters."""
        self.has_moved = False
        """Whether it is no longer what was loaded: a checkpoint must hold it then."""
        self._present = False
        if train.lora.rank and reference.path is None:
            return
        self.module = _load(reference, model_path, model, train, ranks)
        if reference.ema_decay is not None:
            _check_alike(policy, self.module, reference, model_path)
        # Of ``train.cpu_offload`` nothing is on the device but what a pass gathers.
        self._home = make_home(
            self.module,
            resolve_device(model.device),
            offload=reference.offload and not train.cpu_offload,
        )

    @property
    def num_parameters(self) -> int:
        """Numbers in weights of its own."""
        return 0 if self.module is None else sum(parameter.numel() for parameter in self.module.parameters())

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """Its weights are on the device while the body runs. May be nested."""
        if self.module is None or self._present:
            yield
            return
        self._present = True
        try:
            with present(self._home, self.module):
                yield
        finally:
            self._present = False

    @torch.no_grad()
    def logprobs(self, micro_batch: MicroBatch, temperature: float) -> torch.Tensor:
        """Log-probabilities [M] of a micro-batch's targets; call it inside ``present``."""
        logprobs: torch.Tensor
        if self.module is not None:
            logprobs, _ = self.module(micro_batch, temperature)
        else:
            with adapters_off(self._policy.model):
                logprobs, _ = self._policy(micro_batch, temperature)
        return logprobs

    def start_over(self) -> None:
        """Become the policy as it is now, unless ``path`` names another: a warm start is over."""
        if self.module is not None and self._config.path is None:
            self._move(0.0)

    def follow(self) -> None:
        """With ``ema_decay``: become ``decay * reference + (1 - decay) * policy``, weight by weight; without, stay."""
        if self._config.ema_decay is not None:
            self._move(self._config.ema_decay)

    @contextlib.contextmanager
    def weights(self) -> Iterator[dict[str, torch.Tensor]]:
        """Weights of its own by name, for a checkpoint; on the device while the body runs."""
        with self.present():
            yield {} if self.module is None else {name: p.detach() for name, p in self.module.named_parameters()}

    def replaced(self) -> None:
        """Its weights are others now; call it inside ``weights``."""
        self._home.renew()
        self.has_moved = True

    def free(self) -> None:
        """Let go of what a pass has gathered."""
        if self.module is not None:
            free_gathered(self.module)

    @torch.no_grad()
    def _move(self, decay: float) -> None:
        assert self.module is not None
        with self.present():
            mine, policy = ([local_rows(p)[0] for p in m.parameters()] for m in (self.module, self._policy))
            if decay:
                torch._foreach_lerp_(mine, policy, 1.0 - decay)
            else:
                torch._foreach_copy_(mine, policy)
            self._home.renew()
        self.has_moved = True


def _load(
    reference: ReferenceConfig, model_path: Path | str, model: ModelConfig, train: TrainConfig, ranks: RankContext
) -> PackedPolicy:
    try:
        module = load_policy(reference.path or model_path, model, train, ranks)
    except ConfigError as error:
        if reference.path is None:
            raise
        raise ConfigError(f"reference.path={reference.path} cannot be the reference: {error}") from error
    module.requires_grad_(False)
    return module


def _check_alike(policy: PackedPolicy, module: PackedPolicy, reference: ReferenceConfig, path: Path | str) -> None:
    """Raise ``ConfigError`` when the weights of the two have not the same names and shapes."""
    theirs, mine = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (policy, module))
    if theirs != mine:
        name = min(set(theirs.items()) ^ set(mine.items()))[0]
        raise ConfigError(
            f"reference.ema_decay={reference.ema_decay:g}: {reference.path} cannot follow {path}, as {name} is "
            f"{mine.get(name, 'not there')} in it and {theirs.get(name, 'not there')} in the policy; give a reference "
            "of the policy's architecture, or leave ema_decay out"
        )
