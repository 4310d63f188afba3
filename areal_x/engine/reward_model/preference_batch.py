"""Preference pairs as arrays, and how a batch of them is cut: ::

    pairs -> balanced bins, the same number for each rank -> packed micro-batches that share each pair's prompt

A pair is never cut: its loss needs both scores in one backward pass. Axis letters: B pairs, S = 2 B sequences (chosen
and rejected by turns), N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.errors import EngineError
from areal_x.api.records import IntArray, TrainBatch
from areal_x.engine.train.packing import MicroBatch, plan_micro_batches

__all__ = ["PairMicroBatch", "PreferenceBatch", "deal_pairs", "join_pairs", "plan_pairs"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """Pairs laid end to end: chosen, rejected, chosen, ... ``input_ids`` int32 [N], ``lengths`` int32 [S]."""

    input_ids: IntArray
    lengths: IntArray

    def __len__(self) -> int:
        return len(self.lengths) // 2

    def pair_costs(self) -> Indices:
        """Tokens to compute for each pair, int64 [B]: those that both begin with count once."""
        lengths = self.lengths.astype(np.int64)
        ends = np.cumsum(lengths)
        costs = lengths.reshape(-1, 2).sum(axis=1)
        for pair in range(len(self)):
            middle, limit = int(ends[2 * pair]), int(lengths[2 * pair : 2 * pair + 2].min())
            start = middle - int(lengths[2 * pair])
            same = self.input_ids[start : start + limit] == self.input_ids[middle : middle + limit]
            costs[pair] -= limit if same.all() else int(same.argmin())
        return costs

    def check(self, vocabulary_size: int) -> None:
        """Raise ``EngineError`` when the parts do not fit together or an id lies outside the vocabulary."""
        if len(self.lengths) % 2 or int(self.lengths.sum()) != len(self.input_ids):
            raise EngineError(
                f"preference batch: {len(self.lengths)} sequences of {int(self.lengths.sum())} tokens in all, but "
                f"{len(self.input_ids)} tokens are there; each pair is two sequences"
            )
        if len(self.lengths) and int(self.lengths.min()) < 1:
            raise EngineError(f"preference batch: sequence {int(self.lengths.argmin())} is empty")
        if len(self.input_ids) and not 0 <= self.input_ids.min() <= self.input_ids.max() < vocabulary_size:
            raise EngineError(
                f"preference batch: token ids from {self.input_ids.min()} to {self.input_ids.max()}, outside the "
                f"vocabulary of {vocabulary_size}; the tokenizer is another model's"
            )


def join_pairs(pairs: Sequence[tuple[IntArray, IntArray]]) -> PreferenceBatch:
    """One batch of (chosen, rejected) token ids."""
    sequences = [ids for pair in pairs for ids in pair]
    lengths = np.array([len(ids) for ids in sequences], dtype=np.int32)
    return PreferenceBatch(np.concatenate(sequences).astype(np.int32, copy=False), lengths)


def deal_pairs(costs: Indices, budget: int, num_parts: int) -> list[list[Indices]]:
    """The pairs of each micro-batch of each part (rank): ``result[part][micro_batch]``.

    Each part gets the same number of micro-batches, as sharded ranks must run in step; some may be empty. Costs are
    balanced over all of them, at most ``budget`` each where no single pair is larger.
    """
    order = np.argsort(-costs, kind="stable")
    most = -(-max(1, len(costs)) // num_parts) * num_parts
    number = min(most, -(-max(1, -(-int(costs.sum()) // budget)) // num_parts) * num_parts)
    while True:
        loads = np.zeros(number, dtype=np.int64)
        bins: list[list[int]] = [[] for _ in range(number)]
        for pair in order.tolist():
            lightest = int(loads.argmin())
            bins[lightest].append(pair)
            loads[lightest] += costs[pair]
        if number >= most or int(loads.max()) <= budget:
            break
        number += num_parts
    dealt = [np.array(sorted(members), dtype=np.int64) for members in bins]
    return [dealt[part::num_parts] for part in range(num_parts)]


@dataclass(frozen=True, slots=True)
class PairMicroBatch:
    """One forward and backward pass. ``micro_batch.rows`` are the last tokens of chosen, rejected, chosen, ...

    ``pairs`` int64, which pairs of the batch these are; none when this pass only keeps a rank in step with the others.
    """

    pairs: Indices
    micro_batch: MicroBatch


def plan_pairs(
    batch: PreferenceBatch, budget: int, *, part: int = 0, num_parts: int = 1, device: torch.device | str = "cpu"
) -> list[PairMicroBatch]:
    """The micro-batches of one part of a batch; a pure function, so that all ranks agree without a word."""
    if not len(batch):
        return []
    starts = np.cumsum(batch.lengths, dtype=np.int64) - batch.lengths
    bins = deal_pairs(batch.pair_costs(), budget, num_parts)[part]
    return [PairMicroBatch(pairs, _pack(batch, starts, pairs, device)) for pairs in bins]


def _pack(batch: PreferenceBatch, starts: Indices, pairs: Indices, device: torch.device | str) -> MicroBatch:
    """All sequences of some pairs in one micro-batch, which computes every token and reads out the last of each.

    The plan of a policy computes what predicts its targets. So each sequence gets one token more, which is the target
    and is not computed.
    """
    sequences = np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)
    lengths = batch.lengths[sequences] + 1
    ids = np.zeros(int(lengths.sum()), dtype=np.int32)
    for index, end in zip(sequences, np.cumsum(lengths, dtype=np.int64) - 1, strict=True):
        length = batch.lengths[index]
        ids[end - length : end] = batch.input_ids[starts[index] : starts[index] + length]
    is_target = np.zeros(len(ids), dtype=np.bool_)
    is_target[np.cumsum(lengths, dtype=np.int64) - 1] = True
    zeros = np.zeros(len(ids), dtype=np.float32)
    laid = TrainBatch(ids, is_target, zeros, zeros, lengths, np.repeat(pairs, 2))
    (micro_batch,) = plan_micro_batches(laid, is_target, len(ids) + 1, num_micro_batches=1, device=device)
    return micro_batch
