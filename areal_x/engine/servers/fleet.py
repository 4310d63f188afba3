"""The servers of one engine: which of them serve, who waits for one, and what happens when none is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from areal_x.api.errors import EngineDiedError, EngineError
from areal_x.engine.servers.dialect import ServerDialect
from areal_x.engine.servers.recovery import Recovery
from areal_x.engine.servers.replica import Launch, Replica
from areal_x.engine.servers.router import Router
from areal_x.engine.servers.settings import EngineSettings

__all__ = ["BusyClock", "Fleet"]

_STOP_SECONDS = 5.0


class BusyClock:
    """Adds up the seconds in which something was busy."""

    def __init__(self) -> None:
        self._total = 0.0
        self._since: float | None = None

    def set(self, busy: bool) -> None:
        """Busy from now on, or idle."""
        if busy and self._since is None:
            self._since = time.monotonic()
        elif not busy and self._since is not None:
            self._total += time.monotonic() - self._since
            self._since = None

    @property
    def seconds(self) -> float:
        """Busy seconds so far."""
        return self._total + (0.0 if self._since is None else time.monotonic() - self._since)


class Fleet:
    """Starts, watches, restarts and ends servers (the ``ReplicaWatcher`` of each).

    Args:
        launches: one for each server; nothing starts before ``start``.
        admit: gives a server that came back its weights and lets it serve.
        has_weights: whether there are any to give.
    """

    def __init__(
        self,
        dialect: ServerDialect,
        launches: Sequence[Launch],
        settings: EngineSettings,
        admit: Callable[[Replica], Awaitable[None]],
        has_weights: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._admit = admit
        self._awake = asyncio.Event()
        self._awake.set()
        self.replicas = [
            Replica(
                f"{dialect.name} server {index}",
                dialect,
                launch,
                self,
                num_slots=-(-settings.num_slots // len(launches)),
                stall_timeout_seconds=settings.stall_timeout_seconds,
                version=settings.initial_version,
            )
            for index, launch in enumerate(launches)
        ]
        self.busy = BusyClock()
        self.num_waiting = 0
        """Requests that wait for a server."""
        self._recovery = Recovery(settings, self._take_back, self._awake, has_weights)
        self._router = Router()
        self._open: list[Replica] = []
        self._serving = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._dead: EngineDiedError | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._all_gone: asyncio.TimerHandle | None = None
        self._started = False

    @property
    def num_serving(self) -> int:
        """Servers that take requests now."""
        return len(self._open)

    @property
    def alive(self) -> list[Replica]:
        """Servers that serve or are paused."""
        return [replica for replica in self.replicas if replica.alive]

    def check_alive(self) -> None:
        """Raise what ended the engine, or that it has not begun."""
        if self._dead is not None:
            # One of its own for each caller: a shared one would gather everybody's traceback.
            raise EngineDiedError(str(self._dead), self._dead.tail) from self._dead.__cause__
        if not self._keepers:
            raise EngineError("the engine is not started; await engine.start() first")

    async def start(self, admit_all: Callable[[], Awaitable[None]]) -> None:
        """Start all servers at once, then give them their weights by ``admit_all``.

        Raises:
            EngineDiedError: one ended or was not ready in time; the message has its last lines.
            EngineError: one cannot be used as it is.
        """
        if self._started or self._dead is not None:
            raise EngineError("a server engine starts once")
        self._started = True
        loop = asyncio.get_running_loop()
        starts = [loop.create_task(self._recovery.bring_up(replica)) for replica in self.replicas]
        try:
            await asyncio.gather(*starts)
            await admit_all()
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self.close()
            raise
        for replica in self.replicas:
            keeper = loop.create_task(self._recovery.keep(replica), name=f"keeper of {replica.name}")
            keeper.add_done_callback(self._on_keeper_end)
            self._keepers.append(keeper)
        self._count()

    def pick(self, session_id: str | None) -> Replica | None:
        """A server that serves now, ``None`` if there is none."""
        return self._router.pick(self._open, session_id)

    async def next_server(self, session_id: str | None) -> Replica:
        """As ``pick``, but wait for one as long as the engine lives.

        Raises:
            EngineDiedError: no server came back in time, or the engine was closed.
        """
        while True:
            self.check_alive()
            replica = self.pick(session_id)
            if replica is not None:
                return replica
            self.num_waiting += 1
            try:
                await self._serving.wait()
            finally:
                self.num_waiting -= 1

    async def tell(self, replicas: Sequence[Replica], step: Callable[[Replica], Awaitable[None]]) -> None:
        """Carry out one step on each; a server that fails in it is lost."""

        async def one(replica: Replica) -> None:
            try:
                await step(replica)
            except EngineError as error:
                replica.lose(f"did not do what it was told ({error})")

        await asyncio.gather(*(one(replica) for replica in replicas))

    async def sleep(self, step: Callable[[Replica], Awaitable[None]]) -> None:
        """Carry out ``step`` on each server, end those that are just starting, and start none before ``wake_up``."""
        self._awake.clear()
        await asyncio.gather(self.tell(self.alive, step), self._recovery.stop_starts(self.replicas))
        self._count()

    def wake_up(self) -> None:
        """Servers may hold memory of the device again; those that were lost meanwhile are started."""
        self._awake.set()
        self._count()

    async def close(self) -> None:
        """End all servers that were started here; whoever waits gets ``EngineDiedError``. Safe to call twice."""
        self._die(EngineDiedError("the engine was closed"))
        assert self._stopping is not None
        await asyncio.shield(self._stopping)

    def on_change(self, replica: Replica) -> None:
        """See ``ReplicaWatcher``."""
        self._open = [one for one in self.replicas if one.state == "serving"]
        if replica.state == "gone":
            self._router.forget(replica)
        if self._open:
            self._serving.set()
        elif self._dead is None:
            self._serving.clear()
        self.on_load()
        self._count()

    def on_load(self) -> None:
        """See ``ReplicaWatcher``."""
        self.busy.set(any(replica.num_running for replica in self._open))

    async def _take_back(self, replica: Replica) -> None:
        await self._admit(replica)
        if replica.alive:
            # It holds its weights, though it may stay paused with the others.
            self._forget_all_gone()

    def _forget_all_gone(self) -> None:
        if self._all_gone is not None:
            self._all_gone.cancel()
            self._all_gone = None

    def _count(self) -> None:
        """With no server left, begin to wait for one; end the engine when none will come.

        A server that is paused does not end the wait: it may be about to get weights that it cannot load.
        """
        if self._dead is not None or not self._keepers:
            return
        if self._open:
            self._forget_all_gone()
        elif self.alive:
            pass
        elif all(keeper.done() for keeper in self._keepers):
            self._die(self._gone_error("every server is gone and none is started again"))
        elif not self._awake.is_set():
            self._forget_all_gone()
        elif self._all_gone is None:
            seconds = self._settings.all_gone_timeout_seconds
            self._all_gone = asyncio.get_running_loop().call_later(seconds, self._on_all_gone)

    def _on_all_gone(self) -> None:
        seconds = self._settings.all_gone_timeout_seconds
        self._die(
            self._gone_error(f"no server for {seconds:g} s (rollout.server.all_gone_timeout_seconds); the last causes")
        )

    def _gone_error(self, what: str) -> EngineDiedError:
        causes = "\n".join(replica.cause for replica in self.replicas)
        return EngineDiedError(f"{what}: {causes}", "\n".join(replica.tail for replica in self.replicas))

    def _on_keeper_end(self, keeper: asyncio.Task[None]) -> None:
        if keeper.cancelled():
            return
        error = keeper.exception()
        if error is not None:
            died = EngineDiedError(f"{keeper.get_name()} failed: {error!r}")
            died.__cause__ = error
            self._die(died)
        self._count()

    def _die(self, error: EngineDiedError) -> None:
        if self._dead is not None:
            return
        self._dead = error
        self._forget_all_gone()
        self._serving.set()
        self._stopping = asyncio.get_running_loop().create_task(self._stop_all(), name="end of all servers")

    async def _stop_all(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for replica in self.replicas:
            replica.lose("was ended with the engine")
        stops = (replica.stop(_STOP_SECONDS) for replica in self.replicas)
        for error in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(error, BaseException):
                self._settings.notify(f"at the end of the engine: {error}")
