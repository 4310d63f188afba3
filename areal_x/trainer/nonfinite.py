"""Steps whose loss, gradient or advantages are not finite: told, kept for replay, and too many in a row end the run.

The engine skips such a step: weights stay as they are, and the next batch may be fine. Its batch is kept
(``skipped_batches``), because what made it so is rarely seen again. Where it goes on and on, the weights themselves are
broken, or the objective is, and training further only costs time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from areal_x.api.engine_api import TrainEngine
from areal_x.api.errors import NonFiniteError
from areal_x.api.records import BoolArray, TrainBatch
from areal_x.trainer.skipped_batches import POLICY_FOLDER, SkippedBatch, join_batches, write_skipped

__all__ = ["NonFiniteSteps", "nonfinite_inputs"]

_CAUSES = (
    ("train/nonfinite_advantages", "its advantages are not finite"),
    ("train/nonfinite_losses", "the loss is not finite"),
    ("train/nonfinite_gradients", "the gradient is not finite"),
    ("critic/nonfinite_losses", "the loss of the critic is not finite"),
    ("critic/nonfinite_gradients", "the gradient of the critic is not finite"),
)
"""Metrics above 0 say that a step was skipped for this."""
_LARGE = 1e6


def nonfinite_inputs(batch: TrainBatch) -> str | None:
    """Where advantages, what they were made of, or what a critic is to learn, are not finite at a trained token; None:
    nowhere."""
    for name in ("proximal", "reference", "values", "advantages", "returns"):
        values = getattr(batch, name)
        if values is not None and (place := _place(batch, ~np.isfinite(values) & batch.loss_mask)):
            return f"{name}: {place}"
    return None


class NonFiniteSteps:
    """Watches the steps of a run. Works on the trainer's thread.

    Args:
        max_in_a_row: so many such steps, one after another, end the run (``train.max_skipped_in_a_row``).
        folder: where their batches are kept.
        engine: the policy, which is asked where its numbers are not finite.
    """

    def __init__(self, max_in_a_row: int, folder: Path, engine: TrainEngine) -> None:
        self._max_in_a_row = max_in_a_row
        self._folder = folder
        self._engine = engine
        self.num_in_a_row = 0
        self._first = ""

    def on_step(
        self, step: int, parts: Sequence[TrainBatch], metrics: Mapping[str, float], version: int | None = None
    ) -> str | None:
        """A step is done; gives what people should know of it, if anything. A step of nothing to train is neither good
        nor bad.

        Args:
            parts: its batches.
            version: of the weights that it was taken on. Default: the engine's.

        Raises:
            NonFiniteError: it is one too many.
        """
        cause = next((text for name, text in _CAUSES if metrics.get(name)), None)
        if cause is None:
            if metrics.get("train/trained_tokens") or "critic/grad_norm" in metrics:
                self.num_in_a_row = 0
            return None
        batch = join_batches(parts)
        self.num_in_a_row += 1
        look = ""
        if self.num_in_a_row == 1:
            look = f"; {self._look(batch)}"
            self._first = f"step {step}{look}"
        where = self._keep(SkippedBatch(step, self._engine.version if version is None else version, batch))
        if self.num_in_a_row >= self._max_in_a_row:
            raise NonFiniteError(self._spent(step, cause, where))
        in_part = " in part" if "train/grad_norm" in metrics else ""
        return f"step {step} was skipped{in_part}: {cause}{look}; {where}"

    def _look(self, batch: TrainBatch) -> str:
        """Where a number that is not finite comes from, as far as one pass over the batch shows."""
        if (place := nonfinite_inputs(batch)) is not None:
            return place
        logprobs = self._engine.logprobs(batch)
        if place := _place(batch, ~np.isfinite(logprobs) & batch.loss_mask):
            return f"log-probabilities of the policy: {place}"
        sizes = np.abs(np.where(batch.loss_mask, batch.advantages, 0.0))
        if sizes.max(initial=0.0) > _LARGE:
            return f"an advantage has the size {sizes.max():g}: {_place(batch, sizes == sizes.max())}"
        return "log-probabilities and advantages are finite, so the objective or its gradient is not"

    def _keep(self, skipped: SkippedBatch) -> str:
        try:
            return f"its batch is in {write_skipped(self._folder, skipped)}"
        except OSError as error:
            return f"its batch could not be written: {error}"

    def _spent(self, step: int, cause: str, where: str) -> str:
        try:
            self._engine.save(self._folder / POLICY_FOLDER)
            weights = f"and the weights in {self._folder / POLICY_FOLDER}"
        except OSError as error:
            weights = f"and the weights could not be written: {error}"
        return (
            f"step {step} was skipped, the last of train.max_skipped_in_a_row={self._max_in_a_row} in a row: {cause}; "
            f"the first was {self._first}; {where}, {weights}: look at it with areal-x replay"
        )


def _place(batch: TrainBatch, bad: BoolArray) -> str:
    """The first sequence with a bad token, and how many there are; empty: none."""
    tokens = np.flatnonzero(bad)
    if not len(tokens):
        return ""
    sequences = np.unique(np.searchsorted(batch.offsets, tokens, side="right") - 1)
    first = int(sequences[0])
    place = f"sequence {first} (group {batch.group_ids[first]}), token {tokens[0] - batch.offsets[first]}"
    others = len(sequences) - 1
    return place if not others else f"{place}, and {others} more of {len(batch)} sequences"
