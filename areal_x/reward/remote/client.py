"""Asks one of several servers, and another one after a fault, until there is a reply or the call's limits are reached.

Each call consumes a request and waits for a slot of ``max_concurrent``, from which its deadline counts. It is unblocked
by a reply, a fault, the end of its own back-off, or the end of a probe that may bring a server back. It produces the
parsed reply, or an error that holds what each server said last.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from areal_x.api.reward_records import RewardError, RewardTimeoutError
from areal_x.reward.remote.faults import FAULT_KINDS, SHOWN_CHARACTERS, AttemptError
from areal_x.reward.remote.messages import ReplyError, TruncatedReplyError, parse_json
from areal_x.reward.remote.secret_headers import SecretHeaders
from areal_x.reward.remote.servers import Attempt, Server, ServerSet
from areal_x.reward.remote.urls import Target
from areal_x.reward.retries import backoff_seconds

if TYPE_CHECKING:
    from areal_x.reward.remote.transport import HttpTransport

__all__ = ["CallLimits", "RemoteRewardError", "ServersClient"]

_ENDINGS = ("succeeded", "failed", "timed_out", "cancelled")


class RemoteRewardError(RewardError):
    """No server gave a reward."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of calls; the meaning of each is told at ``RemoteReward``."""

    timeout_seconds: float
    deadline_seconds: float
    max_attempts: int
    max_concurrent: int
    backoff_seconds: float
    cooldown_seconds: float


class ServersClient:
    """Calls to a set of servers; belongs to the event loop that ``transport`` was made on."""

    def __init__(
        self, targets: Sequence[Target], limits: CallLimits, transport: HttpTransport, secrets: SecretHeaders
    ) -> None:
        self._limits = limits
        self._transport = transport
        self._secrets = secrets
        self._servers = ServerSet(targets, limits.cooldown_seconds)
        self._slots = asyncio.Semaphore(limits.max_concurrent)
        self._probe_ended = asyncio.Event()
        self._counts: Counter[str] = Counter()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    def metrics(self) -> dict[str, float]:
        """Running totals; see ``RemoteReward.metrics``."""
        names = ("calls", *_ENDINGS, "attempts", "replies", "cancelled_attempts")
        totals = {name: float(self._counts[name]) for name in names}
        totals["in_progress"] = totals["calls"] - sum(totals[name] for name in _ENDINGS)
        totals |= {f"fault/{kind}": float(self._counts[kind]) for kind in FAULT_KINDS}
        servers = self._servers.servers
        totals["servers_in_service"] = float(sum(server.out_until is None for server in servers))
        for index, server in enumerate(servers):
            totals[f"server_{index}/attempts"] = float(server.attempts)
            totals[f"server_{index}/failures"] = float(server.failures)
        return totals

    async def ask(self, body: bytes, read: Callable[[Any], Any]) -> Any:
        """Send ``body`` and return what ``read`` makes of the JSON value that is replied.

        Args:
            read: raises ``ReplyError`` for a value that is no reward.

        Raises:
            RemoteRewardError: no server gave a reward.
            RewardTimeoutError: the same, and the last attempt got no reply in time.
        """
        self._counts["calls"] += 1
        ending = "failed"
        try:
            async with self._slots:
                result = await self._try_servers(body, read)
            ending = "succeeded"
            return result
        except RewardTimeoutError:
            ending = "timed_out"
            raise
        except asyncio.CancelledError:
            ending = "cancelled"
            raise
        finally:
            self._counts[ending] += 1

    async def _try_servers(self, body: bytes, read: Callable[[Any], Any]) -> Any:
        """Attempt after attempt. A fault makes this call, and no other, leave that server alone for a while."""
        limits = self._limits
        until = time.monotonic() + limits.deadline_seconds
        not_before: dict[Server, float] = {}
        faults: Counter[Server] = Counter()
        last: AttemptError | None = None
        for _ in range(limits.max_attempts):
            attempt = await self._next_attempt(not_before, until)
            if attempt is None:
                raise self._given_up(f"deadline_seconds={limits.deadline_seconds:g}", last)
            server = attempt.server
            try:
                return await self._try(attempt, body, read, until)
            except AttemptError as error:
                if not error.is_retried:
                    raise RemoteRewardError(f"{server.target.origin}: {error}") from None
                last = error
                faults[server] += 1
                pause = backoff_seconds(faults[server], limits.backoff_seconds, error.retry_after)
                not_before[server] = time.monotonic() + pause
        raise self._given_up(f"max_attempts={limits.max_attempts}", last)

    def _given_up(self, limit: str, last: AttemptError | None) -> RewardError:
        """The error of a call that reached a limit; a time-out if its last attempt was one."""
        error = RewardTimeoutError if last is not None and last.kind == "timeout" else RemoteRewardError
        return error(f"no reward within {limit}; {self._servers.report(time.monotonic())}")

    async def _next_attempt(self, not_before: Mapping[Server, float], until: float) -> Attempt | None:
        """Wait until a server may be asked; None if that is not before ``until``."""
        while (now := time.monotonic()) < until:
            attempt = self._servers.choose(now, not_before)
            if attempt is not None:
                return attempt
            wake = self._servers.next_time(not_before)
            if wake >= until and not self._servers.any_probed():
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wake, until) - now):
                    await self._probe_ended.wait()
        return None

    async def _try(self, attempt: Attempt, body: bytes, read: Callable[[Any], Any], until: float) -> Any:
        """One attempt; how it ends goes to the counts and to the server's record."""
        seconds = max(0.0, min(self._limits.timeout_seconds, until - time.monotonic()))
        self._counts["attempts"] += 1
        ending: str = "unexpected"
        try:
            result = self._read_reply(await self._transport.post(attempt.server.target, body, seconds), read)
            ending = "replies"
            self._servers.succeeded(attempt)
            return result
        except AttemptError as error:
            ending = error.kind
            # Less time than usual is the call's fault.
            is_cut = error.kind == "timeout" and seconds < self._limits.timeout_seconds
            if error.is_servers and not is_cut:
                at_once = error.kind == "connect"
                self._servers.failed(attempt, str(error), time.monotonic(), at_once=at_once)
            else:
                attempt.server.last_error = str(error)
                if error.is_answer:
                    self._servers.succeeded(attempt)
            raise
        except asyncio.CancelledError:
            ending = "cancelled_attempts"
            raise
        finally:
            self._counts[ending] += 1
            self._servers.release(attempt)
            if attempt.is_probe:
                self._probe_ended.set()
                self._probe_ended = asyncio.Event()

    def _read_reply(self, body: bytes, read: Callable[[Any], Any]) -> Any:
        """What ``read`` makes of the reply. Secrets are hidden first: all that is read goes into results and errors."""
        try:
            return read(self._secrets.hide_in(parse_json(body)))
        except TruncatedReplyError as error:
            raise AttemptError("bad_json", str(error)) from None
        except ReplyError as error:
            raise AttemptError("bad_reply", self._secrets.hide(str(error), SHOWN_CHARACTERS)) from None
