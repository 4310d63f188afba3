"""An inference engine without a model: what it says and how long it takes come from a script.

For tests and benchmarks of everything around a model, and for debugging a workflow or a reward in milliseconds. Time
is real; tokens are not computed one by one. The engine has slots and a first-in first-out queue like a real one,
takes weight updates while requests are in flight, and stamps each token with the version that was live at the moment
when it was due.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from areal_x.api.engine_api import EngineHealth, InferenceEngine
from areal_x.api.errors import EngineDiedError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse, StopReason, VersionSpan

__all__ = ["Script", "ScriptedCompletion", "ScriptedEngine"]


@dataclass(frozen=True, slots=True)
class ScriptedCompletion:
    """What one request gets: ``output_ids`` (ints, [T]) after ``seconds`` in a slot, evenly spaced in time."""

    output_ids: Sequence[int] | np.ndarray[Any, Any]
    seconds: float = 0.0
    logprobs: Sequence[float] | np.ndarray[Any, Any] | None = None
    """Float [T]; None: zeros."""
    stop_reason: StopReason = "stop"


Script = Callable[[ModelRequest], ScriptedCompletion]
"""Called once for each request, when it arrives. May raise ``RequestError`` or ``PromptTooLongError``."""


@dataclass(slots=True, eq=False)
class _Scripted:
    request: ModelRequest
    completion: ScriptedCompletion
    response: asyncio.Future[ModelResponse]
    start: float = 0.0
    running: bool = False
    versions: list[VersionSpan] = field(default_factory=list)


class ScriptedEngine(InferenceEngine):
    """Plays a script through ``num_slots`` slots.

    A slot that becomes free is taken at the very moment when it became free, not when a timer got round to it, so
    that the engine's throughput is that of the script even when the machine is busy.

    Args:
        script: says what each request gets.
        num_slots: requests that run at once; others wait in order of arrival.
        version: version of the weights at the start.
    """

    def __init__(self, script: Script, num_slots: int = 64, version: int = 0) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}; an engine needs at least one slot")
        self._script = script
        self._num_slots = num_slots
        self._num_running = 0
        self._waiting: deque[_Scripted] = deque()
        self._running: list[tuple[float, int, _Scripted]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._update_times: list[float] = [float("-inf")]
        self._update_versions: list[int] = [version]
        self._paused_at: float | None = None
        self._pause_seconds = 0.0
        self._num_tokens = 0
        self._num_updates = 0
        self._busy_seconds = 0.0
        self._death: EngineDiedError | None = None
        self._closed = False

    async def start(self) -> None:
        """Nothing to start."""

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """See ``InferenceEngine.agenerate``."""
        if self._death is not None:
            raise self._death
        if self._closed:
            raise EngineDiedError("the scripted engine is closed")
        loop = asyncio.get_running_loop()
        scripted = _Scripted(request, self._script(request), loop.create_future())
        self._waiting.append(scripted)
        if self._paused_at is None and self._num_running < self._num_slots:
            self._fill(self._now())
            self._arm()
        try:
            return await scripted.response
        except asyncio.CancelledError:
            self._release(scripted)
            raise

    async def update_weights(self, version: int) -> None:
        """Every token that is due from now on is of ``version``."""
        if version < self._update_versions[-1]:
            raise RequestError(f"version {version} is older than version {self._update_versions[-1]}, which is live")
        self._update_times.append(self._now())
        self._update_versions.append(version)
        self._num_updates += 1
        self._forget_old_updates()

    async def pause(self) -> None:
        """Stop the engine's clock."""
        if self._paused_at is None:
            self._paused_at = time.monotonic()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    async def resume(self) -> None:
        """Let the engine's clock go on."""
        if self._paused_at is not None:
            self._pause_seconds += time.monotonic() - self._paused_at
            self._paused_at = None
            self._fill(self._now())
            self._arm()

    async def health(self) -> EngineHealth:
        """See ``InferenceEngine.health``."""
        if self._death is not None:
            raise self._death
        return EngineHealth(
            alive=not self._closed,
            version=self._update_versions[-1],
            num_running=self._num_running,
            num_waiting=len(self._waiting),
            num_generated_tokens=self._num_tokens,
            busy_seconds=self._busy_seconds,
            num_updates=self._num_updates,
        )

    async def close(self) -> None:
        """Stop; requests in flight end with ``EngineDiedError``."""
        self._closed = True
        self._fail_all(EngineDiedError("the scripted engine was closed"))

    def die(self, tail: str = "") -> None:
        """Die as an engine process does: everything in flight and to come raises ``EngineDiedError``."""
        self._death = EngineDiedError("the scripted engine died", tail)
        self._fail_all(self._death)

    def _now(self) -> float:
        """The engine's clock: ``time.monotonic()`` less the time spent paused."""
        return (self._paused_at or time.monotonic()) - self._pause_seconds

    def _fill(self, moment: float) -> None:
        while self._waiting and self._num_running < self._num_slots:
            scripted = self._waiting.popleft()
            scripted.running = True
            scripted.start = moment
            self._num_running += 1
            heapq.heappush(self._running, (moment + scripted.completion.seconds, next(self._numbers), scripted))

    def _arm(self) -> None:
        if self._paused_at is not None or not self._running:
            return
        due = self._running[0][0] + self._pause_seconds
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._now()
        while self._running and self._running[0][0] <= now:
            end, _, scripted = heapq.heappop(self._running)
            if not scripted.running:
                continue
            scripted.running = False
            self._num_running -= 1
            self._finish(scripted, end)
            self._fill(end)
        self._arm()

    def _finish(self, scripted: _Scripted, end: float) -> None:
        completion, request = scripted.completion, scripted.request
        output_ids = np.asarray(completion.output_ids, dtype=np.int32)
        num_tokens = len(output_ids)
        self._num_tokens += num_tokens
        self._busy_seconds += completion.seconds
        logprobs = np.zeros(num_tokens) if completion.logprobs is None else completion.logprobs
        response = ModelResponse(
            request_id=request.request_id,
            input_ids=request.input_ids,
            output_ids=output_ids,
            logprobs=np.asarray(logprobs, dtype=np.float32),
            version_spans=self._version_spans(scripted.start, end, num_tokens),
            stop_reason=completion.stop_reason,
            started_at=scripted.start + self._pause_seconds,
            finished_at=end + self._pause_seconds,
        )
        if not scripted.response.done():
            scripted.response.set_result(response)

    def _version_spans(self, start: float, end: float, num_tokens: int) -> list[VersionSpan]:
        """Token i of T is due at ``start + (i + 1) / T * (end - start)``; an update counts for tokens due after it."""
        first = bisect_right(self._update_times, start) - 1
        spans: list[VersionSpan] = []
        position = 0
        for index in range(first, len(self._update_times)):
            is_last = index + 1 == len(self._update_times) or self._update_times[index + 1] >= end
            until = num_tokens
            if not is_last:
                until = min(int((self._update_times[index + 1] - start) / (end - start) * num_tokens), num_tokens)
            if until > position:
                spans.append(VersionSpan(position, until, self._update_versions[index]))
                position = until
            if is_last:
                break
        return spans

    def _release(self, scripted: _Scripted) -> None:
        """A cancelled request leaves its slot, or the queue."""
        if scripted.running:
            scripted.running = False
            self._num_running -= 1
            if self._paused_at is None:
                self._fill(self._now())
                self._arm()
        elif scripted in self._waiting:
            self._waiting.remove(scripted)

    def _fail_all(self, error: EngineDiedError) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        in_flight = [*self._waiting, *(scripted for _, _, scripted in self._running if scripted.running)]
        self._waiting.clear()
        self._running.clear()
        self._num_running = 0
        for scripted in in_flight:
            scripted.running = False
            if not scripted.response.done():
                scripted.response.set_exception(error)

    def _forget_old_updates(self) -> None:
        """Keep the updates that a running request can still need."""
        if len(self._update_times) < 256:
            return
        oldest = min((scripted.start for _, _, scripted in self._running), default=self._now())
        first = max(bisect_right(self._update_times, oldest) - 1, 0)
        del self._update_times[:first], self._update_versions[:first]
