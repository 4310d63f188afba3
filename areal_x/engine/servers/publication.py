"""Brings the weights staged last to servers: join, pause, load ‖ send, resume, for all of them at once.

A server whose load fails is loaded again, in whole and once, while it is still paused; failing again, it is lost and
replaced. The others go on. A server is told to go on only after its load has succeeded, so none ever samples from half
an update. Whoever calls this holds the transport's lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any

from areal_x.api.errors import EngineError
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import KvOnUpdate, ServerLostError
from areal_x.engine.servers.replica import Replica
from areal_x.engine.transfer.transport import WeightTransport

__all__ = ["Publisher"]

_JOIN_ATTEMPTS = 2


class Publisher:
    """Publishes what a transport has staged.

    Args:
        kv_on_update: what happens to requests in flight.
    """

    def __init__(self, transport: WeightTransport, kv_on_update: KvOnUpdate) -> None:
        self._transport = transport
        self._kv_on_update: KvOnUpdate = kv_on_update
        self._joined: list[tuple[Replica, ServerClient]] = []
        self._due: set[Replica] = set()
        """Paused or woken for the publication under way, and not given its version yet."""
        self.num_redone = 0
        """Servers that had to load an update a second time."""
        self.blocked_seconds = 0.0
        """From the first pause to the last resume of the last publication."""

    @property
    def version(self) -> int | None:
        """The version staged last, ``None`` before the first."""
        return self._transport.version

    async def publish(self, replicas: Sequence[Replica], *, resume: bool = True, wake: bool = False) -> int:
        """Return when each replica that is still alive holds the staged version, which is returned.

        Args:
            resume: whether they go on afterwards.
            wake: they sleep and have to take their memory first.

        Raises:
            EngineError: nothing is staged, or the trainer's part of joining failed twice.

        Whatever is raised, servers that were not told to pause go on as before; those that were, and do not hold the
        staged version, are lost, because they may hold half of it.
        """
        version = self._transport.version
        if version is None:
            raise EngineError("no weights are staged; await stage(version) before update_weights(version)")
        with ExitStack() as stack:
            stack.push(lambda kind, error, trace: self._give_up(version, error))
            await self._publish([replica for replica in replicas if replica.state != "gone"], version, resume, wake)
        return version

    async def _publish(self, members: Sequence[Replica], version: int, resume: bool, wake: bool) -> None:
        self._due.clear()
        if wake:
            self._due.update(members)
            await self._each(members, lambda replica: replica.dialect.wake_up(replica.client))
        await self._join(members)
        started = time.monotonic()
        if self._joined:
            # A broadcast reaches all or none, so it begins when all stand still; else none waits for another.
            self._due.update(members)
            await self._each(members, lambda replica: replica.pause(self._kv_on_update))
        failed = await self._load(members, version, resume)
        if failed:
            self.num_redone += len(failed)
            for replica, error in (await self._load(list(failed), version, resume)).items():
                replica.lose(f"could not load version {version} twice ({error})")
        self.blocked_seconds = time.monotonic() - started

    def _give_up(self, version: int, error: BaseException | None) -> None:
        if error is not None:
            for replica in self._due:
                replica.lose(f"may hold half of version {version}, whose publication broke off ({error!r})")

    async def _each(self, replicas: Sequence[Replica], step: Callable[[Replica], Awaitable[None]]) -> None:
        """One step of each replica that is not gone; whose step fails is lost."""

        async def one(replica: Replica) -> None:
            try:
                await step(replica)
            except EngineError as error:
                replica.lose(f"failed in a weight update ({error})")

        await asyncio.gather(*(one(replica) for replica in replicas if replica.state != "gone"))

    async def _join(self, replicas: Sequence[Replica]) -> None:
        """Make these servers the ones that the transport reaches, if it has to know them."""
        members = [replica for replica in replicas if replica.state != "gone"]
        # A server that was started again is a new one, though its replica is the same.
        wanted = [(replica, replica.client) for replica in members]
        orders = self._transport.join_orders(len(members)) if members and wanted != self._joined else []
        if not orders:
            return
        self._joined = []
        for attempt in range(_JOIN_ATTEMPTS):
            ours = asyncio.to_thread(self._transport.join)
            theirs = [
                replica.dialect.join(replica.client, order) for replica, order in zip(members, orders, strict=True)
            ]
            ours_failed, *failures = await _outcomes(ours, *theirs)
            if ours_failed is None and not any(failures):
                self._joined = wanted
                return
            if attempt + 1 == _JOIN_ATTEMPTS and not any(failures):
                raise EngineError(f"the trainer could not join its servers ({ours_failed})")
            for replica, failure in zip(members, failures, strict=True):
                if failure is not None and (attempt + 1 == _JOIN_ATTEMPTS or isinstance(failure, ServerLostError)):
                    replica.lose(f"could not join the trainer for weight updates ({failure})")
            members = [replica for replica in members if replica.state != "gone"]
            wanted = [(replica, replica.client) for replica in members]
            if not members:
                return
            orders = self._transport.join_orders(len(members))

    async def _load(self, replicas: Sequence[Replica], version: int, resume: bool) -> dict[Replica, EngineError]:
        """Load and go on; those that failed but still answer are returned, paused."""
        await self._join(replicas)
        members = [replica for replica in replicas if replica.state != "gone"]
        if not members:
            return {}
        order = self._transport.load_order()
        sending = asyncio.ensure_future(asyncio.to_thread(self._transport.send))

        async def one(replica: Replica) -> None:
            client = replica.client
            self._due.add(replica)
            await replica.pause(self._kv_on_update)
            await replica.dialect.load(client, order, version, self._kv_on_update)
            await asyncio.shield(sending)
            if replica.client is not client:
                raise ServerLostError(f"{client.base_url} was lost while it loaded")
            replica.hold(version)
            if resume:
                await replica.resume()
            self._due.discard(replica)

        clients = [replica.client for replica in members]
        *failures, _ = await _outcomes(*(one(replica) for replica in members), sending)
        failed: dict[Replica, EngineError] = {}
        for replica, client, failure in zip(members, clients, failures, strict=True):
            # One that was started again meanwhile gets its weights when it is ready.
            if failure is None or replica.state == "gone" or replica.client is not client:
                continue
            if isinstance(failure, ServerLostError):
                replica.lose(f"was lost in a weight update ({failure})")
            else:
                failed[replica] = failure
        if failed:
            self._joined = []
        return failed


async def _outcomes(*steps: Coroutine[Any, Any, None] | asyncio.Future[None]) -> list[EngineError | None]:
    """The error of each step, ``None`` where it succeeded; any other kind of error is raised when all have ended."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, EngineError):
            raise result
    return [result if isinstance(result, EngineError) else None for result in results]
