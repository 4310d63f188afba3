"""Checks of a train batch, before any work."""

from __future__ import annotations

import numpy as np

from areal_x.api.errors import EngineError
from areal_x.api.records import TrainBatch

__all__ = ["check_train_batch"]


def check_train_batch(batch: TrainBatch, vocabulary_size: int) -> None:
    """Raise ``EngineError`` when the parts of a batch do not fit together or cannot be trained."""
    num_tokens = len(batch.input_ids)
    for name in ("loss_mask", "logprobs", "advantages"):
        if len(getattr(batch, name)) != num_tokens:
            raise EngineError(f"train batch: {name} has {len(getattr(batch, name))} values for {num_tokens} tokens")
    if len(batch.group_ids) != len(batch.lengths):
        raise EngineError(f"train batch: {len(batch.group_ids)} group_ids for {len(batch.lengths)} lengths")
    if len(batch.lengths) and int(batch.lengths.min()) < 1:
        raise EngineError(f"train batch: sequence {int(batch.lengths.argmin())} is empty")
    if int(batch.lengths.sum()) != num_tokens:
        raise EngineError(
            f"train batch: lengths add up to {int(batch.lengths.sum())}, but there are {num_tokens} tokens"
        )
    if num_tokens == 0:
        return
    low, high = int(batch.input_ids.min()), int(batch.input_ids.max())
    if low < 0 or high >= vocabulary_size:
        raise EngineError(
            f"train batch: token id {low if low < 0 else high} lies outside the vocabulary of {vocabulary_size}"
        )
    first_trained = np.flatnonzero(batch.loss_mask[batch.offsets[:-1]])
    if len(first_trained):
        raise EngineError(
            f"train batch: loss_mask marks the first token of sequence {int(first_trained[0])}, which nothing predicts"
        )
    trained = batch.loss_mask.astype(np.bool_)
    for name in ("logprobs", "advantages"):
        bad = np.flatnonzero(trained & ~np.isfinite(getattr(batch, name)))
        if len(bad):
            raise EngineError(f"train batch: {name} of trained token {int(bad[0])} is not finite")
