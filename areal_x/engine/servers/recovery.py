"""Brings a server up, and brings it back each time it is lost.

A server that the run started is started again, ``max_restarts`` times; one that somebody else runs is asked with
growing pauses until it answers. Either takes part again only after ``admit``: with the weights that the others have.

    started here:   resume → first token → admit (pause → load → resume)
    somebody else's, once weights are staged:   admit (pause → load → resume → first token)

for what a server of somebody else holds may be half of an update that broke off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable

from areal_x.api.errors import EngineDiedError, EngineError
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import ServerError, ServerFacts, ServerLostError
from areal_x.engine.servers.replica import Replica
from areal_x.engine.servers.settings import EngineSettings

__all__ = ["Recovery"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_LONGEST_REST = 30.0
_NOTICE_SECONDS = 30.0


class Recovery:
    """Life and return of servers.

    Args:
        admit: gives a server that is ready its weights and lets it serve.
        awake: set while servers may hold memory of the device.
        has_weights: whether ``admit`` gives a server its weights now.
    """

    def __init__(
        self,
        settings: EngineSettings,
        admit: Callable[[Replica], Awaitable[None]],
        awake: asyncio.Event,
        has_weights: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._admit = admit
        self._awake = awake
        self._has_weights = has_weights

    async def bring_up(self, replica: Replica) -> None:
        """Start or find the server; return when it has generated one token, or is ready for weights to do so.

        Raises:
            EngineDiedError: it ended; the message has its last lines.
            EngineError: it cannot be used as it is, or was not ready in time.
        """
        settings = self._settings
        try:
            address, process = await replica.launch()
        except EngineError as error:
            replica.cause = f"{replica.name} could not be started: {error}"
            raise
        client = ServerClient(
            address,
            settings.model_name,
            api_key=settings.api_key,
            call_timeout_seconds=settings.update_timeout_seconds,
        )
        replica.attach(client, process)
        if not self._awake.is_set():
            await self._stop_start(replica)
            raise EngineDiedError(replica.cause, replica.tail)
        notices = asyncio.get_running_loop().create_task(self._notices(replica), name=f"notices of {replica.name}")
        try:
            async with asyncio.timeout(settings.start_timeout_seconds):
                await self._make_ready(replica)
        except TimeoutError:
            raise EngineDiedError(
                f"{replica.name} ({address}) was not ready within {settings.start_timeout_seconds:g} s "
                f"(rollout.server.start_timeout_seconds){_last_lines(replica)}",
                replica.tail,
            ) from None
        finally:
            notices.cancel()
            await asyncio.gather(notices, return_exceptions=True)

    async def _make_ready(self, replica: Replica) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                facts = await self._facts(replica)
                self._check(replica, facts)
                replica.client.model_name = facts.model_name
                if not replica.launch.restarts and self._has_weights():
                    replica.unproven = True
                    return
                # A server that somebody else runs may have been left paused, and none has a version of ours yet.
                await replica.dialect.resume(replica.client)
                await replica.dialect.forget_prefixes(replica.client)
                await replica.dialect.set_version(replica.client, replica.version)
                if replica.dialect.adapter is not None:
                    replica.unproven = True
                    return
                await replica.first_token()
                return
            except ServerLostError as error:
                if replica.state == "gone":
                    raise EngineDiedError(f"{replica.cause}", replica.tail) from error
            except ServerError as error:
                if error.status < 500:
                    raise EngineError(f"{replica.name}: {error}{_last_lines(replica)}") from error
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await replica.lost.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _facts(self, replica: Replica) -> ServerFacts:
        try:
            return await replica.dialect.facts(replica.client)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServerError(
                f"{replica.client.base_url} does not answer as a server of {replica.dialect.name} does ({error!r}); "
                "check rollout.base_urls and rollout.engine"
            ) from error

    def _check(self, replica: Replica, facts: ServerFacts) -> None:
        settings = self._settings
        where = f"{replica.name} ({replica.client.base_url})"
        if facts.max_length is not None and facts.max_length < settings.max_length:
            raise EngineError(
                f"{where} takes {facts.max_length} tokens, rollout.max_length is {settings.max_length}; "
                "lower it or start the server with a longer context"
            )
        if facts.vocab_size is not None and facts.vocab_size != settings.vocab_size:
            raise EngineError(
                f"{where} serves a model with {facts.vocab_size} ids, model.path has {settings.vocab_size}; "
                "start the server with the same model"
            )

    async def _notices(self, replica: Replica) -> None:
        """Say what a start that takes long waits for."""
        started = time.monotonic()
        while True:
            await asyncio.sleep(_NOTICE_SECONDS)
            lines = replica.tail.splitlines()
            last = f"; last line: {lines[-1].strip()}" if lines else ""
            where = f"{replica.name} at {replica.client.base_url}"
            self._settings.notify(f"{where} is not ready after {time.monotonic() - started:.0f} s{last}")

    async def stop_starts(self, replicas: Iterable[Replica]) -> None:
        """End servers that are just starting, so that they hold no memory; they are started again once awake."""
        await asyncio.gather(*(self._stop_start(one) for one in replicas if one.state == "starting"))

    async def _stop_start(self, replica: Replica) -> None:
        if replica.process is not None:
            replica.num_restarts -= 1  # It did not fail.
            replica.lose("was ended while it started, because the engine sleeps")
            await replica.process.stop(0.0)

    async def keep(self, replica: Replica) -> None:
        """Bring the server back each time it is lost; return when it is given up."""
        settings = self._settings
        pause = _FIRST_PAUSE
        while True:
            await replica.lost.wait()
            try:
                await replica.stop(0.0)
            except EngineError as error:
                # What it holds, a device above all, is not free for another one; the other servers go on.
                settings.notify(f"{_first_line(replica.cause)}; it is not started again: {error}")
                return
            if replica.launch.restarts:
                if replica.num_restarts == settings.max_restarts:
                    settings.notify(f"{_first_line(replica.cause)}; it is not started again")
                    return
                replica.num_restarts += 1
                settings.notify(
                    f"{_first_line(replica.cause)}; it is started again "
                    f"({replica.num_restarts} of rollout.server.max_restarts={settings.max_restarts})"
                )
            else:
                settings.notify(f"{_first_line(replica.cause)}; it takes part again when it answers")
                await asyncio.sleep(pause)
            await self._awake.wait()
            try:
                await self.bring_up(replica)
                await self._admit(replica)
            except EngineError as error:
                replica.lose(f"did not come back: {error}")
            # It may also have been lost in ``admit``, among others that were given their weights.
            pause = _FIRST_PAUSE if replica.alive else min(2 * pause, _LONGEST_REST)


def _last_lines(replica: Replica) -> str:
    tail = replica.tail
    return f"; its last lines:\n{tail}" if tail else ""


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].removesuffix("; its last lines:")
