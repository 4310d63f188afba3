"""What one train step has added up so far, over its parts and micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.loss import POLICY_MAXIMA, POLICY_SUMS
from areal_x.engine.train.optimizer import Update

__all__ = ["StepTotals"]


@dataclass
class StepTotals:
    """This rank's token sums and maxima (float64, on the device), and counts. ``close_update`` ends an update."""

    device: torch.device
    num_trained_tokens: int = 0
    num_batch_tokens: int = 0
    num_computed_tokens: int = 0
    num_micro_batches: int = 0
    num_skipped: int = 0
    num_bad_losses: int = 0
    """Updates skipped because the loss was not finite."""
    num_bad_gradients: int = 0
    """Updates skipped because the gradient was not, though the loss was."""
    seconds: float = 0.0
    grad_norms: list[float] = field(default_factory=list)
    update_tokens: int = 0
    """Trained tokens whose gradients wait for the optimiser."""

    def __post_init__(self) -> None:
        self._sums = torch.zeros(len(POLICY_SUMS), dtype=torch.float64, device=self.device)
        self._maxima = torch.zeros(len(POLICY_MAXIMA), dtype=torch.float64, device=self.device)
        self.update_loss = self._sums.new_zeros(())
        """The summed loss of those tokens."""

    def add(self, sums: torch.Tensor, maxima: torch.Tensor) -> None:
        """Add the metrics of one micro-batch, named by ``POLICY_SUMS`` and ``POLICY_MAXIMA``."""
        self._sums += sums
        self._maxima = torch.maximum(self._maxima, maxima)
        self.update_loss = self.update_loss + sums[0]

    def close_update(self, update: Update) -> None:
        """The optimiser has used, or skipped, the gradients that waited."""
        if update.applied:
            self.grad_norms.append(update.grad_norm)
        else:
            self.num_skipped += 1
            is_loss = not math.isfinite(update.loss)
            self.num_bad_losses += is_loss
            self.num_bad_gradients += update.num_tokens > 0 and not is_loss
        self.update_tokens = 0
        self.update_loss = torch.zeros_like(self.update_loss)

    def metrics(self, learning_rate: float, ranks: RankContext = ONE_RANK) -> dict[str, float]:
        """The step's metrics named ``train/...`` over all ranks, read from the device once; those that are not finite
        are left out. Every rank must call it."""
        counts = self._sums.new_tensor([self.num_trained_tokens, self.num_computed_tokens])
        sums = ranks.sum(torch.cat([self._sums, counts]))
        *values, trained_tokens, computed_tokens = torch.cat([ranks.max(self._maxima), sums]).tolist()
        metrics: dict[str, float] = {}
        if trained_tokens:
            metrics = dict(zip(POLICY_MAXIMA, values, strict=False))
            means = (value / trained_tokens for value in values[len(POLICY_MAXIMA) :])
            metrics |= dict(zip(POLICY_SUMS, means, strict=True))
        metrics |= {
            "skipped_steps": self.num_skipped,
            "nonfinite_losses": self.num_bad_losses,
            "nonfinite_gradients": self.num_bad_gradients,
            "trained_tokens": trained_tokens,
            "batch_tokens": self.num_batch_tokens,
            "computed_tokens": computed_tokens,
            "num_micro_batches": self.num_micro_batches,
            "learning_rate": learning_rate,
            "seconds": self.seconds,
        }
        if self.grad_norms:
            metrics["grad_norm"] = sum(self.grad_norms) / len(self.grad_norms)
        return {f"train/{name}": float(value) for name, value in metrics.items() if np.isfinite(value)}
