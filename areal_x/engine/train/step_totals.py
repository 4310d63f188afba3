"""What one train step has added up so far, over its parts and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from areal_x.engine.train.loss import POLICY_MAXIMA, POLICY_SUMS

__all__ = ["StepTotals"]


@dataclass
class StepTotals:
    """Token sums and maxima (float64, on the device), and counts. One optimiser step ends with ``close_update``."""

    device: torch.device
    num_trained_tokens: int = 0
    num_batch_tokens: int = 0
    num_computed_tokens: int = 0
    num_micro_batches: int = 0
    num_skipped: int = 0
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

    def close_update(self, grad_norm: float, applied: bool) -> None:
        """The optimiser has used, or skipped, the gradients that waited."""
        if applied:
            self.grad_norms.append(grad_norm)
        else:
            self.num_skipped += 1
        self.update_tokens = 0
        self.update_loss = torch.zeros_like(self.update_loss)

    def metrics(self, learning_rate: float) -> dict[str, float]:
        """The step's metrics named ``train/...``, read from the device once; those that are not finite are left out."""
        metrics: dict[str, float] = {}
        if self.num_trained_tokens:
            values = torch.cat([self._sums / self.num_trained_tokens, self._maxima]).tolist()
            metrics = dict(zip([*POLICY_SUMS, *POLICY_MAXIMA], values, strict=True))
        metrics |= {
            "skipped_steps": self.num_skipped,
            "trained_tokens": self.num_trained_tokens,
            "batch_tokens": self.num_batch_tokens,
            "computed_tokens": self.num_computed_tokens,
            "num_micro_batches": self.num_micro_batches,
            "learning_rate": learning_rate,
            "seconds": self.seconds,
        }
        if self.grad_norms:
            metrics["grad_norm"] = sum(self.grad_norms) / len(self.grad_norms)
        return {f"train/{name}": float(value) for name, value in metrics.items() if np.isfinite(value)}
