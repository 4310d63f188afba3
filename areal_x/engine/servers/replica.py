"""One server as the engine sees it: its process or address, its state, what it works on and when it last moved.

    starting ──ready, has the weights──▶ serving ◀──resume / pause──▶ paused
        ▲                                   │                           │
        └──────── started again ─────────  gone  ◀── ends, hangs, fails ┘

Only a serving replica gets requests. ``version`` changes while it is paused, and ``epoch`` when it goes on after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing
from typing import Literal, Protocol

import numpy as np

from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.continuation import Completion
from areal_x.engine.servers.dialect import KvOnUpdate, ServerDialect, ServerError, ServerLostError
from areal_x.engine.servers.server_host import HostedProcess

__all__ = ["Launch", "Replica", "ReplicaWatcher"]

State = Literal["starting", "serving", "paused", "gone"]

_LATE_SECONDS = 1.0
_EXIT_SECONDS = 0.5


class Launch(Protocol):
    """Makes or finds the server of a replica."""

    restarts: bool
    """Whether a server that is lost can be started again; else it is waited for."""

    async def __call__(self) -> tuple[str, HostedProcess | None]:
        """Start it if it is not there; its address and its process."""
        ...


class ReplicaWatcher(Protocol):
    """Who is told what happens to a replica."""

    def on_change(self, replica: Replica) -> None:
        """Its state changed."""
        ...

    def on_load(self) -> None:
        """It got its first request, or finished its last."""
        ...


class Replica:
    """One server.

    Args:
        name: for messages, such as ``vLLM server 0``.
        num_slots: requests that it decodes at once.
        stall_timeout_seconds: with requests and no new token for so long, it is lost.
        watcher: is told of changes, at once.
    """

    def __init__(
        self,
        name: str,
        dialect: ServerDialect,
        launch: Launch,
        watcher: ReplicaWatcher,
        *,
        num_slots: int,
        stall_timeout_seconds: float,
        version: int = 0,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.launch = launch
        self.num_slots = num_slots
        self.state: State = "starting"
        self.client = ServerClient("http://nowhere.invalid", "")
        self.process: HostedProcess | None = None
        self.version = version
        """Of the weights that it holds."""
        self.epoch = 0
        """Weight updates that it has gone on from."""
        self.num_running = 0
        self.num_tokens = 0
        self.num_restarts = 0
        self.num_lost_at_work = 0
        """Times that it was lost while it served; what it worked on then may be why."""
        self.unproven = False
        """It has to make a first token after the next ``resume``, before it serves."""
        self.cause = ""
        """Why it was lost last, with its last lines; empty when it has served since."""
        self.lost = asyncio.Event()
        self._watcher = watcher
        self._stall_seconds = stall_timeout_seconds
        self._last_progress = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        self._stale_epoch = False
        self._stands_still = False
        self._exit: asyncio.Task[int] | None = None
        self._check: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._num_started = 0

    def __repr__(self) -> str:
        return f"Replica({self.name}, {self.state}, version {self.version}, {self.num_running} running)"

    @property
    def alive(self) -> bool:
        """Whether it holds weights and can be told something."""
        return self.state in ("serving", "paused")

    @property
    def tail(self) -> str:
        """The last lines that its process printed; empty without one."""
        return "" if self.process is None else self.process.tail()

    def attach(self, client: ServerClient, process: HostedProcess | None) -> None:
        """Begin anew with this server, which is not ready yet."""
        self.client, self.process = client, process
        self.lost.clear()
        self._stale_epoch = self._stands_still = self.unproven = False
        if process is not None:
            self._exit = asyncio.get_running_loop().create_task(process.wait(), name=f"end of {self.name}")
            self._exit.add_done_callback(lambda task: self._on_exit(task, process))
        self._set("starting")

    def serve(self) -> None:
        """Take requests from now on."""
        self._set("serving")

    async def pause(self, kv_on_update: KvOnUpdate) -> None:
        """Stop before the next forward pass; nothing is sent to it any more. It is not told twice."""
        self._set("paused")
        if not self._stands_still:
            await self._stand_still(self.dialect.pause(self.client, kv_on_update))

    def hold(self, version: int) -> None:
        """It was given ``version`` while paused; what it samples after ``resume`` is of that version."""
        self._stale_epoch = self._stale_epoch or version != self.version
        self.version = version

    async def resume(self) -> None:
        """Go on after ``pause``."""
        # Before it is told: from here on a token that arrives may be of the new version.
        self.epoch += self._stale_epoch
        self._stale_epoch = self._stands_still = False
        await self.dialect.resume(self.client)
        if self.unproven:
            await self._prove()
        if self.state == "paused":
            self._set("serving")

    async def _prove(self) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self.first_token()
        except TimeoutError:
            raise ServerLostError(
                f"{self.client.base_url} made no first token within {self._stall_seconds:g} s"
            ) from None
        self.unproven = False

    async def first_token(self) -> None:
        """Generate one token, whatever it is.

        Raises:
            ServerError, ServerLostError: it could not.
        """
        sampling = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
        request = ModelRequest(np.zeros(1, np.int32), sampling, request_id="first-token")
        completion = Completion(request, 1, 0, ())
        await self.generate(completion)
        if not completion.token_ids:
            raise ServerLostError(f"{self.client.base_url} ended its first request without a token")

    async def sleep(self) -> None:
        """Give the device's memory back; it is paused."""
        self._set("paused")
        await self._stand_still(self.dialect.sleep(self.client))

    async def _stand_still(self, call: Awaitable[None]) -> None:
        client = self.client
        await call
        # Only its answer makes it certain: a call that broke off may have arrived or not.
        self._stands_still = client is self.client

    def lose(self, cause: str) -> None:
        """It can be counted on no longer: take it out. Its requests go on elsewhere, and calls that still wait for it
        end. Safe when it is gone."""
        if self.state == "gone":
            return
        tail = self.tail
        lines = f"; its last lines:\n{tail}" if tail else ""
        self.cause = f"{self.name} ({self.client.base_url}) {cause}{lines}"
        self.num_lost_at_work += self.state == "serving"
        self.lost.set()
        self._closing = asyncio.get_running_loop().create_task(self.client.close(), name=f"goodbye to {self.name}")
        self._set("gone")

    async def generate(self, completion: Completion) -> None:
        """Work on a completion until it ends or breaks off; what is certain is kept in it.

        Raises:
            ServerError: the server refused the request (``status`` 4xx), or what it sent cannot be.
            ServerLostError: the connection broke before the end.
        """
        self._num_started += 1
        request = completion.request
        part = completion.begin(self.version, self.epoch)
        request_id = f"{request.request_id}-{self._num_started}"
        body = self.dialect.request_body(
            request, request_id, completion.input_ids, part.max_new_tokens, completion.seed
        )
        read = self.dialect.reply_reader().read
        time = asyncio.get_running_loop().time
        broken: ServerError | ServerLostError | None = None
        self._enter(time())
        try:
            async with aclosing(self.client.stream(self.dialect.generate_path, body)) as messages:
                async for message in messages:
                    piece = read(message)
                    if piece is not None:
                        part.add(piece, self.epoch)
                        if piece.token_ids:  # A server that hangs may send messages without any for ever.
                            self.num_tokens += len(piece.token_ids)
                            self._last_progress = time()
        except (ServerError, ServerLostError) as error:
            if isinstance(error, ServerError) and error.status == 0:
                raise
            broken = error
        finally:
            self._leave()
        completion.settle(part, self.version)
        if part.finish is None:
            raise broken or ServerLostError(f"{self.client.base_url}: a reply ended without saying how")

    async def check(self, cause: str) -> None:
        """After a broken connection: one look whether the server still answers; if not, it is lost."""
        if self.state == "gone":
            return
        if self._check is None or self._check.done():
            self._check = asyncio.get_running_loop().create_task(self._look(cause), name=f"check of {self.name}")
        check = self._check
        # Not awaited itself: when the server is lost meanwhile, the check is cancelled, but not who waits for it.
        await asyncio.wait({check})
        if not check.cancelled():
            check.result()

    async def _look(self, cause: str) -> None:
        client = self.client
        try:
            # As patient as with a generation: a server that takes up a thousand requests answers late, too.
            await client.get(self.dialect.alive_path, timeout_seconds=self._stall_seconds)
        except (ServerError, ServerLostError) as error:
            if self._exit is not None:
                # How a process ended says more than a broken connection does, and follows at once.
                await asyncio.wait({self._exit}, timeout=_EXIT_SECONDS)
            if client is self.client:
                self.lose(f"broke a connection ({cause}) and does not answer ({error})")

    async def stop(self, grace_seconds: float) -> None:
        """End its process, if it is ours, and every connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.client.close()
        if self._closing is not None:
            await self._closing
        if self._check is not None:
            self._check.cancel()
            await asyncio.gather(self._check, return_exceptions=True)
        if self.process is not None:
            await self.process.stop(grace_seconds)
        if self._exit is not None:
            self._exit.cancel()
            await asyncio.gather(self._exit, return_exceptions=True)
            self._exit = None

    def _set(self, state: State) -> None:
        if self.state == state:
            return
        self.state = state
        if state == "serving":
            self.cause = ""
            self._last_progress = asyncio.get_running_loop().time()
            self._arm()
        self._watcher.on_change(self)

    def _on_exit(self, task: asyncio.Task[int], process: HostedProcess) -> None:
        if task.cancelled() or process is not self.process:
            return
        status = task.result()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self.lose(how)

    def _enter(self, now: float) -> None:
        self.num_running += 1
        if self.num_running == 1:
            self._last_progress = now
            self._arm()
            self._watcher.on_load()

    def _leave(self) -> None:
        self.num_running -= 1
        if self.num_running == 0:
            self._watcher.on_load()

    def _arm(self) -> None:
        # Armed once for all requests and moved on when it fires, so that a token costs no timer.
        if self._timer is None and self.num_running and self.state == "serving":
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._last_progress + self._stall_seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self.num_running or self.state != "serving":
            self._late = False
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._last_progress + self._stall_seconds:
            self._late = False
            self._arm()
        elif not self._late:
            # The driver itself may have stood still: what arrived meanwhile is read before this fires again.
            self._late = True
            self._timer = loop.call_later(_LATE_SECONDS, self._on_timer)
        else:
            self._late = False
            self.lose(f"made no token in {self._stall_seconds:g} s with {self.num_running} requests in flight")
