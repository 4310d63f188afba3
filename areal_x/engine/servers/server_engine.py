"""An inference engine made of servers: vLLM or SGLang, one or many, started here or by somebody else.

    agenerate ──▶ Router ──▶ Replica.generate ──▶ server        a completion may visit several: continuation.py
                    ▲             │ lost
    update_weights ─┤             ▼
    (Publisher)     └──────── Recovery.keep                     one task for each server, from start to close

Publications, and servers that join again, take turns by one lock, so no server ever serves weights older than those
that the others have.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any

from areal_x.api.engine_api import EngineHealth, InferenceEngine
from areal_x.api.errors import EngineError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse
from areal_x.engine.inference.requests import check_ids, check_sampling, derive_seed
from areal_x.engine.inference.stopping import load_tokenizer
from areal_x.engine.servers.continuation import Completion, find_seam_stop
from areal_x.engine.servers.dialect import KvOnUpdate, ServerDialect, ServerError, ServerLostError
from areal_x.engine.servers.fleet import Fleet
from areal_x.engine.servers.publication import Publisher
from areal_x.engine.servers.replica import Launch, Replica
from areal_x.engine.servers.settings import EngineSettings
from areal_x.engine.transfer.transport import WeightTransport

__all__ = ["ServerEngine"]

_MAX_TRIES = 8
_FIRST_PAUSE = 0.1
_MAX_LOSSES = 3


class ServerEngine(InferenceEngine):
    """Generates with servers; ``build_server_engine`` makes one from a configuration.

    Args:
        dialect: the kind of the servers.
        launches: one for each server; nothing starts before ``start``.
        transport: where new weights come from; without one the weights never change. Not closed here.
    """

    def __init__(
        self,
        dialect: ServerDialect,
        launches: Sequence[Launch],
        settings: EngineSettings,
        transport: WeightTransport | None = None,
    ) -> None:
        self._settings = settings
        self._dialect = dialect
        self._fleet = Fleet(dialect, launches, settings, self._admit, self._has_weights)
        self._lock = asyncio.Lock() if transport is None else transport.lock
        self._publisher = None if transport is None else Publisher(transport, settings.kv_on_update)
        self._pause_kind: KvOnUpdate = "recompute" if settings.kv_on_update == "abort" else settings.kv_on_update
        self._turn: asyncio.Task[None] | None = None
        self._paused = False
        self._asleep = False
        self._numbers = itertools.count(1)
        self._version = settings.initial_version
        self._num_updates = 0
        self._num_continued = 0
        self._num_thrown_away = 0
        self._tokenizer: Any = None
        self._check_sampling = lru_cache(64)(check_sampling)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The servers, to look at."""
        return tuple(self._fleet.replicas)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a completion."""
        return self._settings.eos_ids

    async def start(self) -> None:
        """Start all servers at once; return when each has made a token and holds the staged weights, if any are.

        Raises:
            EngineDiedError: one ended or was not ready in time; the message has its last lines.
            EngineError: one cannot be used as it is.
        """

        async def admit_all() -> None:
            async with self._lock:
                await self._give_weights(self._fleet.replicas)

        await self._fleet.start(admit_all)

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """See ``Generator.agenerate``. A completion whose server is lost goes on elsewhere.

        With truncated sampling on servers that do not score it, log-probabilities are NaN.
        """
        self._fleet.check_alive()
        settings, sampling = self._settings, request.sampling
        self._check_sampling(sampling, settings.has_tokenizer)
        check_ids(request, settings.vocab_size, settings.max_length)
        seed = derive_seed(settings.seed, 0, next(self._numbers)) if sampling.seed is None else sampling.seed
        max_new_tokens = min(sampling.max_new_tokens, settings.max_length - len(request.input_ids))
        completion = Completion(request, max_new_tokens, seed, settings.eos_ids)
        replica = self._fleet.pick(request.session_id) or await self._fleet.next_server(request.session_id)
        started_at = time.monotonic()
        try:
            await self._complete(completion, replica)
        finally:
            self._num_thrown_away += completion.num_thrown_away
        allow_nan = not self._dialect.scores_truncated and (sampling.top_p < 1.0 or sampling.top_k > 0)
        try:
            return completion.response(settings.vocab_size, allow_nan, started_at, time.monotonic())
        except ServerError as error:
            raise EngineError(f"{request.request_id}: a {self._dialect.name} server's reply: {error}") from error

    async def _complete(self, completion: Completion, replica: Replica) -> None:
        """Work on a completion, on ``replica`` first, until it is complete."""
        tries = num_impossible = 0
        losses: list[str] = []
        while True:
            num_lost = replica.num_lost_at_work
            length, epoch, trouble = len(completion.token_ids), replica.epoch, "each server ended it at once"
            try:
                await replica.generate(completion)
            except (ServerError, ServerLostError) as error:
                trouble = str(error)
                num_impossible += await self._weigh(replica, completion, error, num_impossible)
            if completion.stop_reason is not None:
                break
            if replica.num_lost_at_work > num_lost:
                losses.append(replica.cause)
                self._check_losses(completion, losses)
            if len(completion.token_ids) > length:
                tries = 0
            elif replica.state == "serving" and replica.epoch == epoch:
                # Neither an update nor the end of a server explains it.
                tries += 1
                if tries == _MAX_TRIES:
                    raise EngineError(f"{completion.request.request_id}: {tries} tries made no token; {trouble}")
                await asyncio.sleep(_FIRST_PAUSE * 2 ** (tries - 1))
            replica = await self._fleet.next_server(completion.request.session_id)
            self._num_continued += 1
        if completion.seams and completion.request.sampling.stop:
            end = find_seam_stop(
                completion.token_ids, completion.seams, completion.request.sampling.stop, await self._decoder()
            )
            if end is not None:
                completion.cut(end)

    def _check_losses(self, completion: Completion, causes: Sequence[str]) -> None:
        """A request that ends every server that it is sent to may not end them all."""
        self._fleet.check_alive()
        if len(causes) == _MAX_LOSSES:
            raise EngineError(
                f"{completion.request.request_id}: {len(causes)} servers were lost while they worked on this request, "
                "so it is given up:\n" + "\n".join(causes)
            )

    async def _weigh(self, replica: Replica, completion: Completion, error: EngineError, num_impossible: int) -> int:
        """Whether the request is at fault, the server, or neither; returns 1 for a reply that cannot be.

        Raises:
            RequestError: the server refused this request.
            EngineError: it is the second such reply to the same request.
        """
        name = completion.request.request_id
        status = error.status if isinstance(error, ServerError) else None
        if status == 0:
            if replica.state == "gone":
                return 0
            replica.lose(f"sent a reply that cannot be: {error}")
            if num_impossible:
                raise EngineError(
                    f"{name}: two servers sent replies that cannot be, {replica.name}: {error}"
                ) from error
            return 1
        if status is not None and 400 <= status < 500:
            raise RequestError(f"{name}: {error}") from error
        await replica.check(str(error))
        return 0

    async def _decoder(self) -> Callable[[list[int]], str]:
        if self._tokenizer is None:
            settings = self._settings
            self._tokenizer = await asyncio.to_thread(load_tokenizer, settings.model_path, settings.trust_remote_code)
        return lambda ids: str(self._tokenizer.decode(ids, skip_special_tokens=True))

    async def update_weights(self, version: int) -> None:
        """Publish the weights staged last; also returns when newer ones came to serve meanwhile.

        Servers that are down get them before they serve again. An engine that sleeps wakes up.

        Raises:
            EngineError: ``version`` is not staged, or the trainer's part of the update failed.
        """
        self._fleet.check_alive()
        publisher = self._need_publisher("update_weights")
        num_updates = self._num_updates
        await self._in_turn(lambda: self._update(version, publisher, num_updates))
        self._fleet.check_alive()

    async def _update(self, version: int, publisher: Publisher, num_updates: int) -> None:
        """``num_updates``: how many there were when this one was asked for."""
        self._fleet.check_alive()
        newest = self._version if self._num_updates else version - 1
        if not self._asleep and (newest > version or (newest == version and self._num_updates > num_updates)):
            return
        if publisher.version is None or publisher.version < version:
            raise EngineError(
                f"weights of version {version} are not staged (the newest: {publisher.version}); "
                "await stage(version) before update_weights(version)"
            )
        await self._publish(self._fleet.alive, publisher)
        self._num_updates += 1

    async def _in_turn(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Carry out ``step`` under the lock. Once begun it goes on to its end, even when the caller is cancelled: half
        of it would leave servers paused, and free the lock while they still load what is staged."""
        await self._lock.acquire()
        self._turn = asyncio.get_running_loop().create_task(step(), name="a step of all servers")
        self._turn.add_done_callback(lambda _: self._lock.release())
        await asyncio.shield(self._turn)

    async def _publish(self, replicas: Sequence[Replica], publisher: Publisher) -> None:
        version = await publisher.publish(replicas, resume=not self._paused, wake=self._asleep)
        # A server that came back alone may hold what is staged before the others do.
        self._version = min((replica.version for replica in self._fleet.alive), default=version)
        self._asleep = False
        self._fleet.wake_up()

    async def _give_weights(self, replicas: Sequence[Replica]) -> None:
        """Let servers that are ready serve, with the weights that the others have."""
        replicas = [replica for replica in replicas if replica.state != "gone"]
        if self._asleep:
            await self._fleet.tell(replicas, Replica.sleep)
        elif self._publisher is not None and self._has_weights():
            await self._publish(replicas, self._publisher)
        elif self._paused:
            await self._fleet.tell(replicas, lambda replica: replica.pause(self._pause_kind))
        else:
            for replica in replicas:
                replica.serve()

    def _has_weights(self) -> bool:
        return self._publisher is not None and self._publisher.version is not None

    async def _admit(self, replica: Replica) -> None:
        async with self._lock:
            await self._give_weights([replica])

    async def pause(self) -> None:
        """Stop all servers between two forward passes; requests wait where they are."""
        self._fleet.check_alive()
        await self._in_turn(self._pause_all)

    async def _pause_all(self) -> None:
        self._paused = True
        await self._fleet.tell(self._fleet.alive, lambda replica: replica.pause(self._pause_kind))

    async def resume(self) -> None:
        """Go on after ``pause``."""
        self._fleet.check_alive()
        await self._in_turn(self._resume_all)

    async def _resume_all(self) -> None:
        self._paused = False
        if not self._asleep:
            await self._fleet.tell(self._fleet.alive, Replica.resume)

    async def sleep(self) -> None:
        """See ``InferenceEngine.sleep``. A server that is lost meanwhile starts again only afterwards."""
        self._fleet.check_alive()
        self._need_publisher("sleep")
        await self._in_turn(self._sleep_all)

    async def _sleep_all(self) -> None:
        if not self._asleep:
            self._asleep = True
            await self._fleet.sleep(Replica.sleep)

    async def wake_up(self) -> None:
        """Go on after ``sleep`` with the weights staged last."""
        self._fleet.check_alive()
        publisher = self._need_publisher("wake_up")
        await self._in_turn(lambda: self._wake_all(publisher))

    async def _wake_all(self, publisher: Publisher) -> None:
        if self._asleep:
            await self._publish(self._fleet.alive, publisher)

    def _need_publisher(self, what: str) -> Publisher:
        if self._publisher is None:
            raise EngineError(f"{what} needs weights to load, but this engine was built without a weight transport")
        return self._publisher

    async def health(self) -> EngineHealth:
        """Counters of requests and replies; no server is asked."""
        self._fleet.check_alive()
        return EngineHealth(
            alive=True,
            version=self._version,
            num_running=sum(replica.num_running for replica in self._fleet.replicas),
            num_waiting=self._fleet.num_waiting,
            num_generated_tokens=sum(replica.num_tokens for replica in self._fleet.replicas),
            busy_seconds=self._fleet.busy.seconds,
            num_updates=self._num_updates,
        )

    def counters(self) -> dict[str, float]:
        """Totals since the start; ``update_blocked_seconds`` is of the last update."""
        publisher = self._publisher
        return {
            "servers_serving": float(self._fleet.num_serving),
            "servers_restarted": float(sum(replica.num_restarts for replica in self._fleet.replicas)),
            "requests_continued": float(self._num_continued),
            "tokens_sampled_again": float(self._num_thrown_away),
            "updates_redone": 0.0 if publisher is None else float(publisher.num_redone),
            "update_blocked_seconds": 0.0 if publisher is None else publisher.blocked_seconds,
        }

    async def close(self) -> None:
        """End all servers that were started here, at once; calls in flight raise ``EngineDiedError``."""
        await self._fleet.close()
        if self._turn is not None:
            self._turn.cancel()
            await asyncio.wait({self._turn})
