"""What travels between the loop and the ranks that score: conversations laid end to end, and their scores.

Axis letters: N tokens, S conversations, K places at which scores are read (one or several of each conversation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from areal_x.api.records import FloatArray, IntArray, TrainBatch
from areal_x.engine.reward_model.conversations import Conversation

__all__ = ["PartScores", "ScoringBatch", "aggregate", "join_conversations", "join_scores", "packing_batch"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """``input_ids`` int32 [N]; ``lengths`` and ``num_scores`` int32 [S]; ``group_ids`` int64 [S]; ``positions`` int64
    [K], each counted within its conversation, ascending."""

    input_ids: IntArray
    lengths: IntArray
    group_ids: Indices
    num_scores: IntArray
    positions: Indices

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class PartScores:
    """What one rank scored: ``index`` int64 of the K places, ``values`` float32.

    ``load_seconds``: how long the scores had to wait for the weights; ``num_tokens``: rows that were computed.
    """

    index: Indices
    values: FloatArray
    load_seconds: float
    num_tokens: int


def join_conversations(conversations: Sequence[Conversation], group_ids: Sequence[int]) -> ScoringBatch:
    """Lay conversations end to end; those of one group share what they begin with."""
    return ScoringBatch(
        input_ids=np.concatenate([one.ids for one in conversations]),
        lengths=np.array([len(one.ids) for one in conversations], dtype=np.int32),
        group_ids=np.asarray(group_ids, dtype=np.int64),
        num_scores=np.array([len(one.positions) for one in conversations], dtype=np.int32),
        positions=np.concatenate([one.positions for one in conversations]),
    )


def packing_batch(batch: ScoringBatch) -> TrainBatch:
    """The batch as packing takes it: it computes what predicts a target, so each place's target is the next token.

    Each conversation gets one token more at its end, which is a target at most and never computed.
    """
    starts = np.cumsum(batch.lengths, dtype=np.int64) - batch.lengths + np.arange(len(batch))
    total = len(batch.input_ids) + len(batch)
    is_extra = np.zeros(total, dtype=np.bool_)
    is_extra[starts + batch.lengths] = True
    input_ids = np.zeros(total, dtype=np.int32)
    input_ids[~is_extra] = batch.input_ids
    wanted = np.zeros(total, dtype=np.bool_)
    wanted[np.repeat(starts, batch.num_scores) + batch.positions + 1] = True
    zeros = np.zeros(total, dtype=np.float32)
    return TrainBatch(input_ids, wanted, zeros, zeros, batch.lengths + np.int32(1), batch.group_ids)


def join_scores(batch: ScoringBatch, parts: Sequence[PartScores]) -> list[list[float]]:
    """The scores of each conversation, in the order of its places. A place that no rank scored is NaN."""
    values = np.full(len(batch.positions), np.nan, dtype=np.float32)
    for part in parts:
        values[part.index] = part.values
    ends = np.cumsum(batch.num_scores)
    return [values[end - count : end].tolist() for end, count in zip(ends, batch.num_scores, strict=True)]


def aggregate(scores: Sequence[float], how: str) -> float:
    """One score of several: ``last``, ``mean``, ``min`` or ``sum``."""
    if how == "last":
        return scores[-1]
    if how == "min":
        # Python's own ``min`` would lose a NaN that does not come first.
        return float(np.min(scores))
    total = float(np.sum(scores, dtype=np.float64))
    return total / len(scores) if how == "mean" else total
