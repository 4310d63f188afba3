"""Which request is in which row, and what it has sampled so far. Arrays only: no model and no tensors.

Rows 0 to ``num_rows - 1`` are in use. A request that leaves makes a hole; the next request fills it, or the last row
moves into it. All per-token state is in arrays over rows, so a decode step costs no Python per row.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from areal_x.engine.inference.messages import WireRequest
from areal_x.engine.inference.sampling import RowSampling

__all__ = ["RowMove", "SlotTable"]

_ROW_ARRAYS = (
    "tokens", "logprobs", "versions", "last_token", "length", "prompt_length", "length_limit", "inverse_temperature",
    "greedy", "top_p", "top_k", "seeds", "ignore_eos", "has_stop_ids", "has_stop_strings", "started_at",
)  # fmt: skip


class RowMove(NamedTuple):
    """Row ``source`` moved to row ``target``; ``length`` positions of it are in use."""

    source: int
    target: int
    length: int


class SlotTable:
    """State of S rows; ``tokens`` int32 [S, max_length] holds prompts and completions, ``logprobs`` and ``versions``
    are set where a token was sampled."""

    def __init__(self, num_slots: int, max_length: int, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self.num_rows = 0
        self.requests: list[WireRequest | None] = [None] * num_slots
        self.tokens = np.zeros((num_slots, max_length), np.int32)
        self.logprobs = np.zeros((num_slots, max_length), np.float32)
        self.versions = np.zeros((num_slots, max_length), np.int32)
        self.last_token = np.zeros(num_slots, np.int64)
        self.length = np.zeros(num_slots, np.int64)
        self.prompt_length = np.zeros(num_slots, np.int64)
        self.length_limit = np.zeros(num_slots, np.int64)
        self.inverse_temperature = np.ones(num_slots, np.float32)
        self.greedy = np.zeros(num_slots, np.bool_)
        self.top_p = np.ones(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int64)
        self.seeds = np.zeros(num_slots, np.uint64)
        self.ignore_eos = np.zeros(num_slots, np.bool_)
        self.has_stop_ids = np.zeros(num_slots, np.bool_)
        self.has_stop_strings = np.zeros(num_slots, np.bool_)
        self.started_at = np.zeros(num_slots, np.float64)
        self._is_eos = np.zeros(vocab_size, np.bool_)
        self._is_eos[[i for i in eos_ids if 0 <= i < vocab_size]] = True
        self._holes: list[int] = []
        self._row_of: dict[int, int] = {}

    @property
    def num_live(self) -> int:
        """Requests that hold a row."""
        return len(self._row_of)

    @property
    def num_free(self) -> int:
        """Rows that a request can take."""
        return self.num_slots - self.num_live

    def row_of(self, number: int) -> int | None:
        """The row of a request, ``None`` when it holds none."""
        return self._row_of.get(number)

    def place(self, request: WireRequest, now: float) -> int:
        """Give a request the lowest free row; returns the row."""
        if self._holes:
            row = heapq.heappop(self._holes)
        else:
            row = self.num_rows
            self.num_rows += 1
        ids = np.frombuffer(request.input_ids, np.int32)
        length = len(ids)
        self.requests[row] = request
        self._row_of[request.number] = row
        self.tokens[row, :length] = ids
        self.last_token[row] = ids[-1]
        self.length[row] = self.prompt_length[row] = length
        self.length_limit[row] = min(length + request.max_new_tokens, self.max_length)
        self.greedy[row] = request.temperature == 0.0
        self.inverse_temperature[row] = 1.0 / request.temperature if request.temperature > 0.0 else 1.0
        self.top_p[row] = request.top_p
        self.top_k[row] = request.top_k
        self.seeds[row] = request.seed % 2**64
        self.ignore_eos[row] = request.ignore_eos
        self.has_stop_ids[row] = bool(request.stop_token_ids)
        self.has_stop_strings[row] = bool(request.stop)
        self.started_at[row] = now
        return row

    def remove(self, row: int) -> None:
        """Free a row; it stays a hole until a request fills it or ``compact`` closes it."""
        request = self.requests[row]
        assert request is not None
        self.requests[row] = None
        del self._row_of[request.number]
        heapq.heappush(self._holes, row)

    def compact(self) -> list[RowMove]:
        """Close all holes by moving last rows into them; returns the moves, in order."""
        moves: list[RowMove] = []
        while self._holes:
            last = self.num_rows - 1
            if self.requests[last] is None:
                self._holes.remove(last)
                heapq.heapify(self._holes)
            else:
                hole = heapq.heappop(self._holes)
                self._move(last, hole)
                moves.append(RowMove(last, hole, int(self.length[hole])))
            self.num_rows = last
        return moves

    def _move(self, source: int, target: int) -> None:
        used = int(self.length[source])
        for name in _ROW_ARRAYS:
            array = getattr(self, name)
            if array.ndim == 2:
                array[target, :used] = array[source, :used]
            else:
                array[target] = array[source]
        request = self.requests[source]
        assert request is not None
        self.requests[target], self.requests[source] = request, None
        self._row_of[request.number] = target

    def row_sampling(self) -> RowSampling:
        """Sampling parameters of the rows in use (no holes)."""
        used = slice(0, self.num_rows)
        return RowSampling(
            self.inverse_temperature[used],
            self.greedy[used],
            self.top_p[used],
            self.top_k[used],
            self.seeds[used],
            self.length[used] - self.prompt_length[used],
        )

    def record(
        self, ids: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float32], version: int
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Append one sampled token to every row in use.

        Returns:
            Two masks over rows: those that a stop id ended, and those that reached their length. Stop strings are the
            caller's business, since they need a tokenizer.
        """
        count = self.num_rows
        rows = np.arange(count)
        places = self.length[:count]
        self.tokens[rows, places] = ids
        self.logprobs[rows, places] = logprobs
        self.versions[rows, places] = version
        self.last_token[:count] = ids
        self.length[:count] += 1
        stopped = self._is_eos[ids] & ~self.ignore_eos[:count]
        if self.has_stop_ids[:count].any():
            for row in np.flatnonzero(self.has_stop_ids[:count]).tolist():
                request = self.requests[row]
                if request is not None and int(ids[row]) in request.stop_token_ids:
                    stopped[row] = True
        return stopped, self.length[:count] >= self.length_limit[:count]

    def rows_with_stop_strings(self) -> list[int]:
        """Rows in use whose request has stop strings."""
        used = self.has_stop_strings[: self.num_rows]
        return [int(row) for row in np.flatnonzero(used)] if used.any() else []

    def completion(self, row: int) -> slice:
        """Where the sampled tokens of a row lie."""
        return slice(int(self.prompt_length[row]), int(self.length[row]))
