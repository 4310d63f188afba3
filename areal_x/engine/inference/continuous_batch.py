"""Continuous batching: requests join and leave the batch at every decode step. One process, no sockets."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from areal_x.api.errors import EngineError
from areal_x.api.records import spans_from_versions
from areal_x.engine.inference.messages import UpdateReport, WireRequest, WireResponse
from areal_x.engine.inference.model_runner import ModelRunner, PrefixRow
from areal_x.engine.inference.sampling import sample
from areal_x.engine.inference.slots import SlotTable
from areal_x.engine.inference.stopping import find_stop_string
from areal_x.engine.weights import WeightsReader

__all__ = ["ContinuousBatch"]


class ContinuousBatch:
    """Waiting requests, the rows they run in and the model that decodes them.

    Requests are admitted in the order they came. An ordered batch (``WireRequest.batch`` not 0) shares the rows with
    nobody: it starts when all before it have ended, and what comes after waits for its end. So the composition of each
    of its forward passes depends on the batch alone.
    """

    def __init__(
        self,
        runner: ModelRunner,
        num_slots: int,
        max_length: int,
        eos_ids: Iterable[int] = (),
        *,
        tokenizer: Any | None = None,
        recompute: bool = True,
        version: int = 0,
    ) -> None:
        self.runner = runner
        self.version = version
        self.slots = SlotTable(num_slots, max_length, runner.vocab_size, eos_ids)
        self.waiting: dict[int, WireRequest] = {}
        self.num_generated_tokens = 0
        self.busy_seconds = 0.0
        self.num_updates = 0
        self._tokenizer = tokenizer
        self._recompute = recompute
        self._current_batch = 0
        self._joining: list[PrefixRow] = []
        self._last_step_seconds = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a step would generate something."""
        return bool(self.waiting) or self.slots.num_live > 0

    def submit(self, requests: Iterable[WireRequest]) -> None:
        """Queue checked requests in order."""
        self.waiting.update((request.number, request) for request in requests)

    def cancel(self, number: int) -> None:
        """Forget a request; its row is free for the next step. Unknown numbers have ended already."""
        if self.waiting.pop(number, None) is None:
            row = self.slots.row_of(number)
            if row is not None:
                self.slots.remove(row)

    @torch.inference_mode()
    def step(self) -> list[WireResponse]:
        """Admit what fits, decode one token for every row, return what ended."""
        started = time.monotonic()
        slots = self.slots
        self._admit(started)
        for move in slots.compact():
            self.runner.cache.move(*move)
        count = slots.num_rows
        if count == 0:
            return []
        logits = self.runner.decode(slots.last_token[:count], slots.length[:count] - 1, self._joining)
        self._joining = []
        ids, logprobs = sample(logits, slots.row_sampling())
        stopped, full = slots.record(ids, logprobs, self.version)
        for row in slots.rows_with_stop_strings():
            request = slots.requests[row]
            if request is not None and not stopped[row]:
                completion = slots.tokens[row, slots.completion(row)]
                stopped[row] = find_stop_string(self._tokenizer, completion, request.stop)
        ended = [self._finish(int(row), bool(stopped[row])) for row in np.flatnonzero(stopped | full)]
        self.num_generated_tokens += count
        self._last_step_seconds = time.monotonic() - started
        self.busy_seconds += self._last_step_seconds
        return ended

    def _admit(self, now: float) -> None:
        while self.waiting and self.slots.num_free:
            number, request = next(iter(self.waiting.items()))
            if self.slots.num_live == 0:
                self._current_batch = request.batch
            elif request.batch != self._current_batch:
                break
            del self.waiting[number]
            row = self.slots.place(request, now)
            prefix = np.frombuffer(request.input_ids, np.int32)[:-1]
            if len(prefix):
                self._joining.append((row, prefix))

    def _finish(self, row: int, stopped: bool) -> WireResponse:
        slots = self.slots
        request = slots.requests[row]
        assert request is not None
        where = slots.completion(row)
        logprobs = slots.logprobs[row, where]
        error = None
        if not np.isfinite(logprobs).all():
            error = f"weights of version {self.version} gave probabilities that are not finite"
        response = WireResponse(
            number=request.number,
            output_ids=slots.tokens[row, where].tobytes(),
            logprobs=logprobs.tobytes(),
            version_spans=[(a, b, version) for a, b, version in spans_from_versions(slots.versions[row, where])],
            stop_reason="stop" if stopped else "length",
            started_at=float(slots.started_at[row]),
            finished_at=time.monotonic(),
            error=error,
        )
        slots.remove(row)
        return response

    @torch.inference_mode()
    def take_weights(self, reader: WeightsReader, minimum_version: int) -> UpdateReport:
        """Copy the newest weights, between two decode steps; with ``recompute`` fill all live prefixes again.

        Raises:
            EngineError: no such version appeared. The parameters may be torn, so the engine must not go on.
        """
        started = time.monotonic()
        report_torn = reader.num_torn
        version = reader.copy_into(self.runner.parameters(), minimum_version)
        self._synchronize()
        copied = time.monotonic()
        live = self._live_prefixes() if self._recompute else []
        self.runner.prefill(live)
        self._synchronize()
        self.version = version
        self.num_updates += 1
        ended = time.monotonic()
        return UpdateReport(
            version=version,
            num_live=self.slots.num_live,
            prefix_lengths=tuple(len(ids) for _, ids in live),
            num_torn_copies=reader.num_torn - report_torn,
            blocked_seconds=ended - started,
            copy_seconds=copied - started,
            prefill_seconds=ended - copied,
            decode_step_seconds=self._last_step_seconds,
        )

    def _live_prefixes(self) -> list[PrefixRow]:
        slots = self.slots
        rows = [row for row in range(slots.num_rows) if slots.requests[row] is not None and slots.length[row] > 1]
        return [(row, slots.tokens[row, : slots.length[row] - 1]) for row in rows]

    def _synchronize(self) -> None:
        if self.runner.device.type == "cuda":
            torch.cuda.synchronize(self.runner.device)

    def check_weights(self, reader: WeightsReader) -> None:
        """Compare the shared layout with the model's parameters.

        Raises:
            EngineError: a shared tensor is unknown or of another shape, or a parameter is not shared.
        """
        parameters = self.runner.parameters()
        covered = set()
        for spec in reader.specs:
            parameter = parameters.get(spec.name)
            if parameter is None:
                raise EngineError(f"shared weight {spec.name!r} is not a parameter of the engine's model")
            shape = tuple(parameter.shape)
            if shape != spec.shape:
                raise EngineError(f"shared weight {spec.name!r} has shape {spec.shape}, the model's is {shape}")
            covered.add(parameter.data_ptr())
        for name, parameter in parameters.items():
            if parameter.data_ptr() not in covered and parameter.numel():
                raise EngineError(f"parameter {name!r} of the engine's model is not among the shared weights")
