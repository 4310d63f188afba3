"""What of a batch has to be computed: trimmed sequences, and prefixes that the samples of one group share.

Axis letters: N tokens of the batch, S all its sequences, K those of them that are computed.

A token whose successors are not trained needs no forward pass: each sequence is cut before its last trained token, and
a sequence without one is left out. Samples of one group begin with the same prompt: its rows are computed once, all
samples attend to them, and their gradients add up there. Both are exact, because attention is causal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from areal_x.api.records import TrainBatch

__all__ = ["ComputedTokens", "Indices", "computed_tokens", "ragged_arange"]

Indices = npt.NDArray[np.int64]

MIN_SHARED_FRACTION = 0.05
"""Prefixes are shared when it saves at least this part of the tokens: rows used twice cost gathers in attention."""


@dataclass(frozen=True, slots=True)
class ComputedTokens:
    """The sequences that are computed. All fields are int64 [K]."""

    sequences: Indices
    """Place in the batch, ascending."""
    used: Indices
    """Tokens that must be computed, from the start."""
    units: Indices
    """Sequences of one unit share their prefix."""
    shared: Indices
    """Length of that prefix; 0 where none is shared."""


def computed_tokens(
    batch: TrainBatch,
    target_mask: npt.NDArray[np.bool_],
    *,
    sequences: Indices | None = None,
    share_prefixes: bool = True,
) -> ComputedTokens:
    """What log-probabilities of the tokens in ``target_mask`` (bool [N]) need; of ``sequences`` only, if given."""
    offsets_S = batch.offsets[:-1]
    lengths_S = np.asarray(batch.lengths, dtype=np.int64)
    targets = np.flatnonzero(target_mask)
    sequence_of_target = np.repeat(np.arange(len(lengths_S)), lengths_S)[targets]
    used_S = np.zeros(len(lengths_S), dtype=np.int64)
    np.maximum.at(used_S, sequence_of_target, targets - offsets_S[sequence_of_target])
    if sequences is not None:
        chosen = np.zeros(len(lengths_S), dtype=np.bool_)
        chosen[sequences] = True
        used_S[~chosen] = 0
    kept = np.flatnonzero(used_S).astype(np.int64)
    used = used_S[kept]
    if share_prefixes and len(kept):
        units, shared = _shared_prefixes(batch, kept, offsets_S[kept], used)
        saved = shared.sum() - shared[np.unique(units, return_index=True)[1]].sum()
        if saved >= MIN_SHARED_FRACTION * used.sum():
            return ComputedTokens(kept, used, units, shared)
    return ComputedTokens(kept, used, np.arange(len(kept)), np.zeros_like(used))


def ragged_arange(lengths: Indices) -> Indices:
    """0..length-1 for each length, end to end."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _shared_prefixes(batch: TrainBatch, kept: Indices, offsets: Indices, used: Indices) -> tuple[Indices, Indices]:
    """Unit and length of the common prefix of each kept sequence, int64 [K] both; one group id is one unit."""
    _, first, units = np.unique(np.asarray(batch.group_ids)[kept], return_index=True, return_inverse=True)
    limits = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(limits, units, used)
    compared = limits[units]
    local = ragged_arange(compared)
    own = batch.input_ids[np.repeat(offsets, compared) + local]
    leader = batch.input_ids[np.repeat(offsets[first][units], compared) + local]
    different = own != leader
    np.minimum.at(limits, np.repeat(units, compared)[different], local[different])
    alone = np.bincount(units) == 1
    return units.astype(np.int64), np.where(alone, 0, limits)[units]
