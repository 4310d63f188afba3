"""Optimiser steps of the policy. ::

    accumulate: TrainBatch -> this rank's micro-batches -> each: packed forward -> log-probabilities -> loss -> backward
    apply:      divide by the denominator -> clip gradients -> optimiser step (skipped when not finite) -> metrics

Several updates of one batch go through its groups in mini-batches, epoch by epoch. The policy at the start of the step
is then another than the one that is trained, so its log-probabilities are computed before; so they are for a correction
that must see the whole batch.
"""

from __future__ import annotations

import dataclasses
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
from areal_x.engine.train.mini_batches import deal_mini_batches
from areal_x.engine.train.objective.inputs import LossInputs, loss_inputs
from areal_x.engine.train.objective.objective import Objective
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

    Raises:
        ConfigError: the objective's functions are not there, or not what they must be.
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
        self._objective = Objective(algorithm)
        self.totals: StepTotals | None = None
        """Of the parts that wait for ``apply``."""

    def train(self, batch: TrainBatch, version: int) -> dict[str, float]:
        """One optimiser step for each mini-batch of each epoch; returns the metrics of all. ``version`` is that of the
        weights."""
        algorithm = self._algorithm
        num_groups = len(np.unique(batch.group_ids))
        if algorithm.num_epochs * min(algorithm.num_mini_batches, num_groups) < 2:
            self.accumulate(batch, version)
            return self.apply()
        started = time.perf_counter()
        inputs = self._inputs(batch, version, several_updates=True)
        totals = StepTotals(self._device)
        step = self._optimizer.num_steps
        learning_rate = self._optimizer.begin_step()
        for epoch in range(algorithm.num_epochs):
            order_of = (self._seed, step, epoch) if algorithm.shuffle else None
            for sequences in deal_mini_batches(batch.group_ids, algorithm.num_mini_batches, order_of):
                self._accumulate(totals, self._hooks.plan(batch, batch.loss_mask, sequences), inputs)
                self._step(totals)
        totals.num_batch_tokens = len(batch.input_ids)
        totals.seconds = time.perf_counter() - started
        return totals.metrics(learning_rate, self._ranks)

    def accumulate(self, part: TrainBatch, version: int) -> None:
        """Add the gradients of one part of a step."""
        started = time.perf_counter()
        totals = self.totals or StepTotals(self._device)
        inputs = self._inputs(part, version, several_updates=False)
        self._accumulate(totals, self._hooks.plan(part, part.loss_mask), inputs)
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

    def _inputs(self, batch: TrainBatch, version: int, several_updates: bool) -> LossInputs:
        """What the loss needs of a batch, with all that must be computed before the first update."""
        inputs = loss_inputs(batch, self._algorithm, version, self._device)
        trained = np.flatnonzero(batch.loss_mask).astype(np.int64)
        if (several_updates or self._objective.corrects_whole_batch) and inputs.proximal is None:
            logprobs = torch.from_numpy(self._hooks.logprobs(batch, batch.loss_mask)).to(self._device)
            inputs = dataclasses.replace(inputs, proximal=logprobs)
        if several_updates and self._objective.uses_reference and inputs.reference is None:
            mine = self._hooks.reference(len(batch.input_ids), self._hooks.plan(batch, batch.loss_mask))
            inputs = dataclasses.replace(inputs, reference=self._ranks.sum(mine))
        if self._objective.corrects_whole_batch:
            # Every rank has all tokens, so each finds the same correction alone.
            positions = torch.from_numpy(trained).to(self._device)
            inputs = inputs.with_correction(self._objective.correction_of(inputs.at(positions)), positions)
        return inputs

    def _accumulate(self, totals: StepTotals, plan: list[MicroBatch], inputs: LossInputs) -> None:
        """Forward and backward of every micro-batch: gradients of token sums, not yet divided by anything."""
        if self._objective.uses_reference and inputs.reference is None:
            inputs = dataclasses.replace(inputs, reference=self._hooks.reference(len(inputs.behaviour), plan))
        with_gradient = self._objective.uses_entropy
        for micro_batch in plan:
            logprobs, entropy = self._policy(micro_batch, self._temperature, with_gradient)
            terms = self._objective(logprobs, entropy, inputs.at(micro_batch.positions), self._ranks)
            terms.loss.backward()
            totals.add(terms)
            totals.num_trained_tokens += len(micro_batch.targets)
            totals.num_computed_tokens += micro_batch.num_rows
        totals.num_micro_batches += len(plan)

    def _step(self, totals: StepTotals) -> None:
        """Step on the gradients that wait; only now the denominator of the update is known."""
        totals.close_update(self._optimizer.apply(totals.update_loss, totals.update_share))
