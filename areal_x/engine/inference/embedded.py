"""The embedded inference engine, seen from the driver.

``agenerate`` puts a checked request into the outbox; one callback per loop iteration sends the outbox as one frame;
the engine's process (``worker``) decodes and sends one frame per step that ended something; the reader callback
resolves the waiting futures. Nothing polls and no thread runs. When the process ends, every waiting call raises
``EngineDiedError``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from areal_x.api.engine_api import EngineHealth, InferenceEngine
from areal_x.api.errors import EngineDiedError, EngineError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse, VersionSpan
from areal_x.engine.inference.engine_process import EngineProcess
from areal_x.engine.inference.messages import (
    FrameBuffer,
    Message,
    UpdateReport,
    WireRequest,
    WireResponse,
    WorkerConfig,
    encode_frame,
)
from areal_x.engine.inference.requests import check_sampling, derive_seed, to_wire

if TYPE_CHECKING:
    from areal_x.engine.weights import SharedWeights

__all__ = ["EmbeddedEngine"]

_RECEIVE_BYTES = 2**18
_REAP_SECONDS = 1.0


class EmbeddedEngine(InferenceEngine):
    """Runs any causal language model of transformers in a process of its own, on a CPU or a CUDA device.

    Args:
        model_path: directory in Hugging Face format, or a hub name.
        num_slots: sequences decoded at once.
        max_length: prompt and completion together, in tokens.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        num_threads: threads of the engine's process on a CPU.
        kv_on_update: what happens to the prefixes of requests in flight when weights change: ``recompute`` (each later
            token is sampled from exactly the distribution of its version) or ``keep`` (old keys and values stay).
        weights: shared memory that ``update_weights`` reads.
        initial_version: version of the weights at ``model_path``.
        log_path: file for what the process prints; by default only its last lines are kept.
        seed: derives the seeds of requests that have none.
        start_timeout_seconds: how long ``start`` may take.
        call_timeout_seconds: how long the process may take to answer ``pause``, ``resume``, ``health`` and
            ``update_weights``.
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        num_slots: int = 64,
        max_length: int = 1024,
        device: str = "auto",
        dtype: str = "float32",
        num_threads: int = 1,
        kv_on_update: str = "recompute",
        weights: SharedWeights | None = None,
        initial_version: int = 0,
        log_path: Path | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
        start_timeout_seconds: float = 600.0,
        call_timeout_seconds: float = 120.0,
    ) -> None:
        if kv_on_update not in ("recompute", "keep"):
            raise EngineError(f"kv_on_update {kv_on_update!r} is neither 'recompute' nor 'keep'")
        if num_slots < 1 or max_length < 2 or num_threads < 1:
            raise EngineError(
                f"num_slots {num_slots} and num_threads {num_threads} must be at least 1, max_length {max_length} 2"
            )
        self._handle = None if weights is None else weights.new_reader()
        self._config = WorkerConfig(
            model_path=str(model_path),
            num_slots=num_slots,
            max_length=max_length,
            device=device,
            dtype=dtype,
            num_threads=num_threads,
            recompute=kv_on_update == "recompute",
            initial_version=initial_version,
            weights=self._handle,
            parent_pid=os.getpid(),
            trust_remote_code=trust_remote_code,
        )
        self._log_path = log_path
        self._seed = seed
        self._start_timeout = start_timeout_seconds
        self._call_timeout = call_timeout_seconds
        self._process: EngineProcess | None = None
        self._buffer = FrameBuffer()
        self._outbox: list[Message] = []
        self._unsent = bytearray()
        self._flush_scheduled = False
        self._numbers = itertools.count(1)
        self._batches = itertools.count(1)
        self._requests: dict[int, tuple[ModelRequest, asyncio.Future[ModelResponse]]] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._dead: EngineError | None = None
        self._vocab_size = 0
        self._has_tokenizer = False
        self.eos_ids: tuple[int, ...] = ()
        """Ids that end a completion, known after ``start``."""
        self.last_update: UpdateReport | None = None
        """What the last weight update cost."""
        self._check_sampling = lru_cache(64)(check_sampling)

    @property
    def pid(self) -> int | None:
        """Process id of the engine while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process, load the model and check that it can run; return when it can generate.

        Raises:
            EngineError: ``model_path`` is a directory without a model.
            EngineDiedError: the model could not be loaded or is not supported; the message says why.
        """
        if self._process is not None or self._dead is not None:
            raise EngineError("an embedded engine starts once")
        path = Path(self._config.model_path)
        if path.is_dir() and not (path / "config.json").exists():
            raise EngineError(f"model path {path} has no config.json; save the model with save_pretrained")
        fds = () if self._handle is None else (self._handle.fd,)
        self._loop = asyncio.get_running_loop()
        self._process = EngineProcess(self._config.num_threads, fds, self._log_path)
        self._loop.add_reader(self._process.socket, self._on_readable)
        ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._calls[0] = ready
        self._post(("start", self._config))
        try:
            async with asyncio.timeout(self._start_timeout):
                info = await ready
        except BaseException as error:
            self._calls.pop(0, None)
            await self.close()
            if isinstance(error, TimeoutError):
                raise EngineError(f"the engine did not start within {self._start_timeout:g} s") from error
            raise
        self._vocab_size = info["vocab_size"]
        self._has_tokenizer = info["has_tokenizer"]
        self.eos_ids = info["eos_ids"]

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """See ``Generator.agenerate``. Greedy tokens get their log-probability under the untempered distribution."""
        self._check_alive()
        number = next(self._numbers)
        wire = self._to_wire(request, number, 0, derive_seed(self._seed, 0, number))
        future = self._expect(request, number)
        # Requests of one loop iteration travel together, in the order in which they were made.
        if self._outbox and self._outbox[-1][0] == "generate":
            self._outbox[-1][1].append(wire)
        else:
            self._post(("generate", [wire]))
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel([number])
            raise

    async def agenerate_batch(self, requests: Sequence[ModelRequest]) -> list[ModelResponse | RequestError]:
        """Sample one ordered batch that shares no forward pass with other requests, so that it repeats bitwise.

        Requests without a seed get one from the engine's seed, the number of batches so far and their place.
        """
        self._check_alive()
        batch = next(self._batches)
        results: list[asyncio.Future[ModelResponse] | RequestError] = []
        numbers: list[int] = []
        wires: list[WireRequest] = []
        for place, request in enumerate(requests):
            number = next(self._numbers)
            try:
                wires.append(self._to_wire(request, number, batch, derive_seed(self._seed, batch, place)))
            except RequestError as error:
                results.append(error)
                continue
            numbers.append(number)
            results.append(self._expect(request, number))
        self._post(("generate", wires))
        try:
            outcomes: list[ModelResponse | RequestError] = []
            for result in results:
                outcomes.append(result if isinstance(result, RequestError) else await result)
            return outcomes
        except BaseException:
            self._cancel(numbers)
            for result in results:
                # Marks as seen what failed in the same frame as the first failure: nobody awaits it any more.
                if isinstance(result, asyncio.Future) and result.done() and not result.cancelled():
                    result.exception()
            raise

    async def update_weights(self, version: int) -> None:
        """See ``InferenceEngine.update_weights``. The cost is in ``last_update``."""
        report = await self._call("update", version)
        assert isinstance(report, UpdateReport)
        self.last_update = report

    async def pause(self) -> None:
        """Stop after the decode step at hand; requests wait where they are."""
        await self._call("pause")

    async def resume(self) -> None:
        """Go on after ``pause``."""
        await self._call("resume")

    async def health(self) -> EngineHealth:
        """Counters of the process, answered between two decode steps."""
        return EngineHealth(alive=True, **await self._call("health"))

    async def close(self) -> None:
        """End the process at once, whatever it does; calls in flight raise ``EngineDiedError``."""
        self._die(EngineDiedError("the engine was closed"), kill=True)

    def _to_wire(self, request: ModelRequest, number: int, batch: int, default_seed: int) -> WireRequest:
        seed = request.sampling.seed
        self._check_sampling(request.sampling, self._has_tokenizer)
        return to_wire(
            request, number, batch, default_seed if seed is None else seed, self._vocab_size, self._config.max_length
        )

    def _expect(self, request: ModelRequest, number: int) -> asyncio.Future[ModelResponse]:
        future: asyncio.Future[ModelResponse] = self._loop.create_future()
        self._requests[number] = (request, future)
        return future

    def _cancel(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            entry = self._requests.pop(number, None)
            if entry is not None:
                entry[1].cancel()
                if self._dead is None:
                    self._post(("cancel", number))

    async def _call(self, kind: str, *arguments: Any) -> Any:
        self._check_alive()
        number = next(self._numbers)
        future = self._calls[number] = self._loop.create_future()
        self._post((kind, number, *arguments))
        try:
            async with asyncio.timeout(self._call_timeout):
                return await future
        except TimeoutError as error:
            raise EngineError(f"the engine did not answer {kind!r} within {self._call_timeout:g} s") from error
        finally:
            self._calls.pop(number, None)

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise self._dead
        if self._process is None:
            raise EngineError("the engine is not started; await engine.start() first")

    def _post(self, message: Message) -> None:
        self._outbox.append(message)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._dead is None and self._outbox:
            waiting = bool(self._unsent)
            self._unsent += encode_frame(self._outbox)
            self._outbox = []
            if not waiting:
                self._send()

    def _send(self) -> None:
        assert self._process is not None
        sock = self._process.socket
        try:
            while self._unsent:
                del self._unsent[: sock.send(self._unsent)]
        except BlockingIOError:
            self._loop.add_writer(sock, self._send)
            return
        except OSError:
            # The process is gone; the end of its stream, which follows, fails every call with its last lines.
            self._unsent.clear()
        self._loop.remove_writer(sock)

    def _on_readable(self) -> None:
        assert self._process is not None
        try:
            data = self._process.socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._on_end_of_stream()
            return
        for message in self._buffer.feed(data):
            match message:
                case ("ended", responses):
                    for response in responses:
                        self._resolve(response)
                case ("answer", call, answer):
                    self._answer(call, answer)
                case ("ready", info):
                    self._answer(0, info)
                case ("failed", text):
                    self._die(EngineDiedError(f"the engine could not start: {text}", self._process.tail()), kill=True)
                    return

    def _on_end_of_stream(self) -> None:
        assert self._process is not None
        # The stream ends while the process exits, so this wait is short; a process that closed it on purpose is killed.
        status = self._process.wait(_REAP_SECONDS / 2)
        tail = self._process.tail()
        if status is None:
            how = "closed its connection"
        else:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        lines = f"; its last lines:\n{tail}" if tail else ""
        self._die(EngineDiedError(f"the engine's process {self._process.pid} {how}{lines}", tail), kill=True)

    def _answer(self, call: int, answer: Any) -> None:
        future = self._calls.get(call)
        if future is not None and not future.done():
            if isinstance(answer, EngineError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _resolve(self, response: WireResponse) -> None:
        entry = self._requests.pop(response.number, None)
        if entry is None or entry[1].done():
            return
        request, future = entry
        if response.error is not None:
            future.set_exception(EngineError(f"{request.request_id}: {response.error}"))
            return
        future.set_result(
            ModelResponse(
                request.request_id,
                request.input_ids,
                np.frombuffer(response.output_ids, np.int32).copy(),
                np.frombuffer(response.logprobs, np.float32).copy(),
                [VersionSpan(*span) for span in response.version_spans],
                "stop" if response.stop_reason == "stop" else "length",
                response.started_at,
                response.finished_at,
            )
        )

    def _die(self, error: EngineError, kill: bool) -> None:
        """Fail every call in flight and give back what the process held."""
        if self._dead is not None:
            return
        self._dead = error
        if self._process is not None:
            self._loop.remove_reader(self._process.socket)
            self._loop.remove_writer(self._process.socket)
            self._process.socket.close()
            if kill:
                self._process.kill()
            self._process.wait(_REAP_SECONDS)
            self._process.release()
        futures = [future for _, future in self._requests.values()]
        for future in [*futures, *self._calls.values()]:
            if not future.done():
                future.set_exception(error)
                # Marks it as seen: of an ordered batch only the first is awaited when all fail.
                future.exception()
        self._requests.clear()
        self._calls.clear()
