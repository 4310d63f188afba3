"""What one train step has added up so far, over its parts and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from areal_x.api.errors import EngineError
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.objective.objective import ObjectiveTerms
from areal_x.engine.train.optimizer import Update

__all__ = ["StepTotals"]


class _Named:
    """Numbers by name, in one tensor; empty until the first come."""

    def __init__(self, device: torch.device) -> None:
        self.names: tuple[str, ...] = ()
        self.values = torch.zeros(0, dtype=torch.float64, device=device)
        self._is_empty = True

    def take(self, numbers: Mapping[str, torch.Tensor], largest: bool = False) -> None:
        """Add these, or keep the larger ones.

        Raises:
            EngineError: they have other names than those before: ranks could not add up theirs.
        """
        names = tuple(numbers)
        if not names:
            return
        if self._is_empty:
            self.names, self._is_empty = names, False
            self.values = torch.zeros(len(names), dtype=torch.float64, device=self.values.device)
        elif names != self.names:
            odd = sorted(set(names) ^ set(self.names)) or names
            raise EngineError(f"metrics of the loss change from one micro-batch to the next: {', '.join(odd)}")
        new = torch.stack([value.to(torch.float64) for value in numbers.values()])
        self.values = torch.maximum(self.values, new) if largest else self.values + new


@dataclass
class StepTotals:
    """This rank's sums and maxima (float64, on the device), and counts. ``close_update`` ends an update."""

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

    def __post_init__(self) -> None:
        self._sums, self._fresh, self._stale = (_Named(self.device) for _ in range(3))
        self._maxima, self._fresh_maxima = (_Named(self.device) for _ in range(2))
        self._losses = torch.zeros(4, dtype=torch.float64, device=self.device)
        """Loss, policy loss and shares of all updates, and the number of fresh tokens."""
        self.update_loss = self._losses.new_zeros(())
        """The summed loss of the tokens whose gradients wait for the optimiser."""
        self.update_share = self._losses.new_zeros(())
        """What these are to be divided by."""

    def add(self, terms: ObjectiveTerms) -> None:
        """Add one micro-batch."""
        loss = terms.loss.detach()
        new = (loss, terms.policy_loss, terms.share, terms.num_fresh)
        self._losses += torch.stack([value.to(self.device, torch.float64) for value in new])
        self.update_loss = self.update_loss + loss
        self.update_share = self.update_share + terms.share
        self._sums.take(terms.sums)
        self._fresh.take(terms.fresh_sums)
        self._stale.take(terms.stale_sums)
        self._maxima.take(terms.maxima, largest=True)
        self._fresh_maxima.take(terms.fresh_maxima, largest=True)

    def close_update(self, update: Update) -> None:
        """The optimiser has used, or skipped, the gradients that waited."""
        if update.applied:
            self.grad_norms.append(update.grad_norm)
        else:
            self.num_skipped += 1
            is_loss = not math.isfinite(update.loss)
            self.num_bad_losses += is_loss
            self.num_bad_gradients += update.denominator > 0 and not is_loss
        self.update_loss = torch.zeros_like(self.update_loss)
        self.update_share = torch.zeros_like(self.update_share)

    def metrics(self, learning_rate: float, ranks: RankContext = ONE_RANK) -> dict[str, float]:
        """The step's metrics named ``train/...`` over all ranks, read from the device once; those that are not finite,
        or of no tokens, are left out. Every rank must call it."""
        counts = self._losses.new_tensor([self.num_trained_tokens, self.num_computed_tokens])
        summed = (self._losses, counts, self._sums.values, self._fresh.values, self._stale.values)
        maxima = ranks.max(torch.cat([self._maxima.values, self._fresh_maxima.values]))
        reduced = torch.cat([ranks.sum(torch.cat(summed)), maxima]).tolist()
        loss, policy_loss, share, num_fresh, trained_tokens, computed_tokens = reduced[:6]
        values = iter(reduced[6:])

        def means(named: _Named, number: float) -> dict[str, float]:
            sums = dict(zip(named.names, values, strict=False))
            return {name: value / number for name, value in sums.items()} if number else {}

        metrics = means(self._sums, trained_tokens)
        metrics |= means(self._fresh, num_fresh)
        metrics |= means(self._stale, trained_tokens - num_fresh)
        metrics |= {name: next(values) for name in self._maxima.names} if trained_tokens else {}
        metrics |= {name: next(values) for name in self._fresh_maxima.names} if num_fresh else {}
        if share:
            metrics |= {"loss": loss / share, "policy_loss": policy_loss / share}
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
