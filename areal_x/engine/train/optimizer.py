"""AdamW on a schedule, with clipped gradients: one step the same on all ranks, or skipped on all.

Gradients arrive as sums over tokens (and over ranks, where weights are sharded); what all ranks' sums are to be divided
by, the number of tokens or of sequences, is known only now, and divides them together with the clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from areal_x.api.config import TrainConfig
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.schedule import scheduled_learning_rate
from areal_x.engine.train.sharding import local_rows

__all__ = ["MOMENTS", "ScheduledAdamW", "Update"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of AdamW's means of gradients and of their squares."""


class Update(NamedTuple):
    """What one optimiser step did. ``denominator`` and ``loss``, the sum divided by it, are of all ranks."""

    applied: bool
    grad_norm: float
    """Before clipping. 0 when there was nothing to train."""
    loss: float
    denominator: float


class ScheduledAdamW:
    """The optimiser of the parameters that are trained; decay is for matrices only.

    Args:
        parameters: those that do not require a gradient are left out.
        device: that reductions over ranks run on.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        train: TrainConfig,
        ranks: RankContext = ONE_RANK,
        device: torch.device | str = "cpu",
    ) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._train, self._ranks, self._device = train, ranks, device
        self.reset(train.learning_rate, train.lr_schedule, train.warmup_steps, train.total_steps)

    def reset(self, learning_rate: float, schedule: str, warmup_steps: int, total_steps: int) -> None:
        """Fresh state and schedule."""
        self._schedule = (learning_rate, schedule, warmup_steps, total_steps)
        self._num_steps = 0
        decayed = [parameter for parameter in self._parameters if parameter.ndim >= 2]
        others = [parameter for parameter in self._parameters if parameter.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": self._train.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        first, second = self._train.betas
        self._adamw = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(first, second), fused=True)
        self.clear()

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        peak, schedule, warmup_steps, total_steps = self._schedule
        return scheduled_learning_rate(
            self._num_steps,
            peak=peak,
            schedule=schedule,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            min_ratio=self._train.min_lr_ratio,
        )

    @property
    def state(self) -> dict[Any, Any]:
        """Moments by parameter; empty before the first step."""
        state: dict[Any, Any] = self._adamw.state
        return state

    def progress(self) -> dict[str, Any]:
        """What a checkpoint says of the schedule: its settings, and where it stands."""
        return {"schedule": list(self._schedule), "num_steps": self._num_steps}

    def go_on(self, progress: Mapping[str, Any]) -> None:
        """Stand in the schedule where ``progress`` was; its settings stay the configured ones."""
        self._num_steps = int(progress["num_steps"])
        self.clear()

    def make_moments(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Moments of these parameters, to be read into, and of no others."""
        state = self._adamw.state
        state.clear()
        for parameter in parameters:
            step = torch.zeros((), dtype=torch.float32, device=local_rows(parameter)[0].device)
            state[parameter] = {"step": step} | {moment: torch.zeros_like(parameter) for moment in MOMENTS}

    @property
    def num_steps(self) -> int:
        """Steps begun since the start of the schedule."""
        return self._num_steps

    def begin_step(self) -> float:
        """Set the learning rate and return it. A skipped step counts too: the schedule follows the run's steps."""
        rate = self.learning_rate
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._num_steps += 1
        return rate

    def clear(self) -> None:
        """Forget gradients that wait."""
        self._adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def apply(self, loss: torch.Tensor, denominator: torch.Tensor | float) -> Update:
        """Divide the gradients by what all ranks' denominators add up to, clip, and step; skip when nothing is to be
        trained or when loss or gradient is not finite. The gradients are gone afterwards.

        Args:
            loss: this rank's sum over tokens, pairs or whatever is trained; ``denominator``: their number, or another
                divisor of which this is the rank's part.
        """
        gradients = [local_rows(parameter.grad)[0] for parameter in self._parameters if parameter.grad is not None]
        squares = loss.new_zeros((), dtype=torch.float64)
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients)).to(torch.float64)
            squares = norms.square().sum()
        mine = torch.stack([squares.to(self._device), loss.to(self._device, torch.float64)])
        own = torch.as_tensor(denominator, dtype=torch.float64, device=self._device).reshape(1)
        squared, total_loss, total = self._ranks.sum(torch.cat([mine, own])).tolist()
        if not total:
            self.clear()
            return Update(False, 0.0, 0.0, 0.0)
        grad_norm = math.sqrt(squared) / total if squared >= 0 else math.nan
        applied = math.isfinite(grad_norm) and math.isfinite(total_loss)
        if applied:
            # The small number is that of torch.nn.utils.clip_grad_norm_.
            clipped = min(1.0, self._train.max_grad_norm / (grad_norm + 1e-6))
            torch._foreach_mul_(gradients, clipped / total)
            self._adamw.step()
        self.clear()
        return Update(applied, grad_norm, total_loss / total, total)
