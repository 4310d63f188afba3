"""Optimiser steps of the policy. ::

accumulate: TrainBatch -> this rank's micro-batches -> each: packed forward -> log-probabilities -> loss -> backward
apply:      divide by the token count -> clip gradients -> optimiser step (skipped when not finite) -> metrics
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.config import AlgorithmConfig
from areal_x.api.records import FloatArray, TrainBatch
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.computed_tokens import Indices
from areal_x.engine.train.loss import policy_loss
from areal_x.engine.train.mini_batches import deal_mini_batches
from areal_x.engine.train.optimizer import ScheduledAdamW
from areal_x.engine.train.packed_policy import PackedPolicy
from areal_x.engine.train.packing import MicroBatch
from areal_x.engine.train.step_totals import StepTotals

__all__ = ["PolicyHooks", "PolicyUpdates"]

BoolMask = npt.NDArray[np.bool_]


class Plan(Protocol):
    """Gives this rank's micro-batches; as many as every other rank's."""

    def __call__(self, batch: TrainBatch, wanted: BoolMask, sequences: Indices | None = None) -> list[MicroBatch]: ...


@dataclass(frozen=True)
class PolicyHooks:
    """What updates ask of the engine."""

    plan: Plan
    logprobs: Callable[[TrainBatch, BoolMask], FloatArray]
    """Log-probabilities of the masked tokens under the policy as it is, float32 [N], the same on all ranks."""
    reference: Callable[[int, list[MicroBatch]], torch.Tensor]
    """Those of the targets of this rank's micro-batches under the reference, float32 [N]; from the number N."""


class PolicyUpdates:
    """Adds up gradients of parts of a step, and steps.

    Args:
        algorithm: the objective, and how many updates one batch gets.
        seed: of the order in which groups are dealt out to mini-batches.
    """

    def __init__(
        self,
        policy: PackedPolicy,
        optimizer: ScheduledAdamW,
        algorithm: AlgorithmConfig,
        hooks: PolicyHooks,
        *,
        temperature: float,
        ranks: RankContext,
        device: torch.device,
        seed: int,
    ) -> None:
        self._policy, self._optimizer, self._algorithm, self._hooks = policy, optimizer, algorithm, hooks
        self._temperature, self._ranks, self._device, self._seed = temperature, ranks, device, seed
        self.totals: StepTotals | None = None
        """Of the parts that wait for ``apply``."""

    def train(self, batch: TrainBatch) -> dict[str, float]:
        """One optimiser step for each mini-batch; returns the metrics of all."""
        mini_batches = deal_mini_batches(batch.group_ids, self._algorithm.num_mini_batches)
        if len(mini_batches) < 2:
            self.accumulate(batch)
            return self.apply()
        started = time.perf_counter()
        tensors = self._loss_inputs(batch)
        tensors["proximal"] = self._on_device(self._hooks.logprobs(batch, batch.loss_mask))
        totals = StepTotals(self._device)
        learning_rate = self._optimizer.begin_step()
        for sequences in mini_batches:
            self._accumulate(totals, batch, self._hooks.plan(batch, batch.loss_mask, sequences), tensors)
            self._step(totals)
        totals.num_batch_tokens = len(batch.input_ids)
        totals.seconds = time.perf_counter() - started
        return totals.metrics(learning_rate, self._ranks)

    def accumulate(self, part: TrainBatch) -> None:
        """Add the gradients of one part of a step."""
        started = time.perf_counter()
        totals = self.totals or StepTotals(self._device)
        self._accumulate(totals, part, self._hooks.plan(part, part.loss_mask), self._loss_inputs(part))
        totals.num_batch_tokens += len(part.input_ids)
        totals.seconds += time.perf_counter() - started
        self.totals = totals

    def apply(self) -> dict[str, float]:
        """One optimiser step on all parts since the last one; returns the metrics of all of them together."""
        started = time.perf_counter()
        totals = self.totals or StepTotals(self._device)
        learning_rate = self._optimizer.begin_step()
        self._step(totals)
        self.totals = None
        totals.seconds += time.perf_counter() - started
        return totals.metrics(learning_rate, self._ranks)

    def discard(self) -> None:
        """Forget the parts since the last step."""
        self.totals = None
        self._optimizer.clear()

    def _on_device(self, values: FloatArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self._device)

    def _loss_inputs(self, batch: TrainBatch) -> dict[str, torch.Tensor]:
        """Arguments of the loss by name, one value for each token of the batch."""
        return {"behaviour": self._on_device(batch.logprobs), "advantages": self._on_device(batch.advantages)}

    def _accumulate(
        self, totals: StepTotals, batch: TrainBatch, plan: list[MicroBatch], tensors: dict[str, torch.Tensor]
    ) -> None:
        """Forward and backward of every micro-batch: gradients of token sums, not yet divided by any count."""
        if self._algorithm.kl_coefficient:
            tensors["reference"] = self._hooks.reference(len(batch.input_ids), plan)
        for micro_batch in plan:
            logprobs, entropy = self._policy(micro_batch, self._temperature)
            terms = policy_loss(
                logprobs,
                algorithm=self._algorithm,
                num_global_tokens=1.0,
                entropy=entropy,
                **{name: values.index_select(0, micro_batch.positions) for name, values in tensors.items()},
            )
            terms.loss.backward()
            totals.add(terms.sums, terms.maxima)
            totals.num_trained_tokens += len(micro_batch.targets)
            totals.update_tokens += len(micro_batch.targets)
            totals.num_computed_tokens += micro_batch.num_rows
        totals.num_micro_batches += len(plan)

    def _step(self, totals: StepTotals) -> None:
        """Step on the gradients that wait; only now the trained tokens of the update are known."""
        totals.close_update(self._optimizer.apply(totals.update_loss, totals.update_tokens))
