"""One question to the judge: look it up, or send it, again where a fault may pass, until its deadline."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from areal_x.reward.judge.cache import CachedReply, ReplyCache
from areal_x.reward.judge.endpoint import Endpoint
from areal_x.reward.judge.errors import (
    JudgeDeadlineError,
    JudgeReplyError,
    JudgeRequestError,
    JudgeUnavailableError,
)
from areal_x.reward.judge.faults import Fault
from areal_x.reward.judge.gate import ConcurrencyGate
from areal_x.reward.judge.meter import JudgeMeter
from areal_x.reward.judge.replies import read_reply
from areal_x.reward.judge.settings import CallLimits
from areal_x.reward.judge.single_flight import SingleFlight
from areal_x.reward.retries import backoff_seconds

__all__ = ["JudgeCaller", "Messages"]

Messages = list[dict[str, str]]
Parsed = TypeVar("Parsed")

_CHARACTERS_PER_TOKEN = 4
_DEFAULT_COMPLETION_TOKENS = 512


class JudgeCaller:
    """Asks questions of one judge.

    Args:
        endpoint: the model.
        limits: of each call.
        sampling: sent with each request.
        response_format: asks for structured output; left out for good once the server has refused it. None: never sent.
        form: all that decides how replies are read; part of the key of cached replies.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        limits: CallLimits,
        meter: JudgeMeter,
        sampling: Mapping[str, Any],
        response_format: dict[str, Any] | None,
        form: str,
        cache: ReplyCache | None,
    ) -> None:
        self._endpoint, self._limits, self._meter, self._cache = endpoint, limits, meter, cache
        self._body = {"model": endpoint.settings.model, **sampling}
        self._response_format = response_format
        self._flights: SingleFlight[Any] = SingleFlight()
        self._entry = ConcurrencyGate(endpoint.settings.max_concurrent)
        of_all = [1, endpoint.settings.base_url, self._body, response_format, form]
        self._hash = hashlib.sha256(json.dumps(of_all, sort_keys=True, default=str).encode())
        self._completion_tokens = next(
            (sampling[name] for name in ("max_tokens", "max_completion_tokens") if type(sampling.get(name)) is int),
            _DEFAULT_COMPLETION_TOKENS,
        )

    async def enter(self) -> None:
        """Wait until this call of the reward may begin; who entered must ``leave``.

        Those that wait here hold their arguments and nothing else, which keeps the garbage collector quick when tens of
        thousands come at once.

        Raises:
            JudgeDeadlineError: it took longer than ``max_wait_seconds``.
        """
        try:
            await self._place(self._entry)
        except JudgeDeadlineError:
            self._meter.add("calls")
            self._meter.add("failed")
            raise

    def leave(self) -> None:
        """End what ``enter`` began."""
        self._entry.release()

    async def ask(self, messages: Messages, parse: Callable[[str], Parsed], index: int = 0) -> Parsed:
        """The parsed reply to ``messages``. Calls that are the same at the same time share one.

        Args:
            parse: reads a reply, or raises ``JudgeReplyError``; decided by ``form``.
            index: which of several votes on the same messages.

        Raises:
            JudgeError: there is no verdict.
        """
        meter = self._meter
        meter.add("calls")
        ending = "failed"
        try:
            key = self._key(messages, index)
            if self._flights.has(key):
                meter.add("shared")
            parsed: Parsed = await self._flights.run(key, lambda: self._answer(key, messages, parse))
            ending = "answered"
            return parsed
        except asyncio.CancelledError:
            ending = "cancelled"
            raise
        finally:
            meter.add(ending)

    def _key(self, messages: Messages, index: int) -> bytes:
        found = self._hash.copy()
        found.update(json.dumps([index, messages]).encode())
        return found.digest()

    async def _answer(self, key: bytes, messages: Messages, parse: Callable[[str], Parsed]) -> Parsed:
        if self._cache is not None:
            cached = await self._cache.get(key)
            if cached is not None:
                self._meter.add("cache_hits")
                return _parsed(parse, cached.text)
        reply = await self._with_place(messages)
        parsed = _parsed(parse, reply.text)
        if self._cache is not None:
            self._cache.put(key, reply)
        return parsed

    async def _with_place(self, messages: Messages) -> CachedReply:
        waited = await self._place(self._endpoint.gate)
        try:
            return await self._attempts(messages, waited)
        finally:
            self._endpoint.gate.release()

    async def _place(self, gate: ConcurrencyGate) -> float:
        """Wait for a place; the seconds that it took."""
        waiting_since = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.max_wait_seconds):
                await gate.acquire()
        except TimeoutError:
            raise self._waited_too_long() from None
        finally:
            self._meter.add_seconds("wait_seconds", time.monotonic() - waiting_since)
        return time.monotonic() - waiting_since

    async def _attempts(self, messages: Messages, waited: float) -> CachedReply:
        limits, faults = self._limits, Counter[str]()
        worked, asked_format = 0.0, self._response_format
        tokens = sum(len(message["content"]) for message in messages) / _CHARACTERS_PER_TOKEN + self._completion_tokens
        while True:
            waited += await self._turn(tokens, waited)
            started_at = time.monotonic()
            seconds = min(limits.timeout_seconds, limits.deadline_seconds - worked)
            result = await self._request(messages, asked_format, tokens, seconds)
            worked += time.monotonic() - started_at
            if isinstance(result, CachedReply):
                if faults["format_refused"]:
                    self._response_format = None
                return result
            faults[result.kind] += 1
            if result.kind == "format_refused" and worked < limits.deadline_seconds:
                asked_format = None
                continue
            if result.kind in ("too_large", "compressed"):
                raise JudgeReplyError(f"{self._endpoint.settings.name}: {result.text}")
            if not result.is_retried:
                raise JudgeRequestError(f"{self._endpoint.settings.name} refused the request: {result.text}")
            pause = backoff_seconds(faults.total(), limits.backoff_seconds, result.retry_after)
            self._check_retry(faults, result, pause, limits.deadline_seconds - worked)
            self._meter.add(f"retry/{result.kind}")
            await asyncio.sleep(pause)
            worked += pause

    def _check_retry(self, faults: Counter[str], last: Fault, pause: float, seconds_left: float) -> None:
        limits, name = self._limits, self._endpoint.settings.name
        seen = ", ".join(f"{count} x {kind}" for kind, count in faults.items())
        if pause >= seconds_left:
            asked = f"; the server asks to wait {last.retry_after:.3g} s" if last.retry_after is not None else ""
            raise JudgeDeadlineError(
                f"{name} gave no reply within deadline_seconds={limits.deadline_seconds:g} ({seen}; {last.text}{asked})"
            )
        if faults.total() - faults["format_refused"] >= limits.max_attempts:
            raise JudgeUnavailableError(f"{name} gave no reply in {limits.max_attempts} attempts ({seen}; {last.text})")

    async def _turn(self, tokens: float, waited: float) -> float:
        """Wait for a turn under the limits per minute; the seconds that it took."""
        limiter = self._endpoint.limiter
        if limiter.is_unlimited:
            return 0.0
        waiting_since = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.max_wait_seconds - waited):
                await limiter.turn(tokens)
        except TimeoutError:
            raise self._waited_too_long() from None
        finally:
            self._meter.add_seconds("wait_seconds", time.monotonic() - waiting_since)
        return time.monotonic() - waiting_since

    def _waited_too_long(self) -> JudgeDeadlineError:
        return JudgeDeadlineError(
            f"a call waited max_wait_seconds={self._limits.max_wait_seconds:g} for its turn at "
            f"{self._endpoint.settings.name}; raise it, max_concurrent or the limits per minute"
        )

    async def _request(
        self, messages: Messages, asked_format: dict[str, Any] | None, tokens: float, timeout_seconds: float
    ) -> CachedReply | Fault:
        meter = self._meter
        body = {**self._body, "messages": messages}
        if asked_format is not None:
            body["response_format"] = asked_format
        meter.add("requests")
        started_at = time.monotonic()
        ending: str | None = "fault/unknown"
        try:
            result = await self._endpoint.post(body, timeout_seconds)
            ending = None
        except asyncio.CancelledError:
            ending = "requests_cancelled"
            raise
        finally:
            if ending is not None:
                meter.add(ending)
            meter.add_seconds("request_seconds", time.monotonic() - started_at)
        if isinstance(result, Fault):
            if result.kind == "http_400" and asked_format is not None:
                # Perhaps the server knows no structured output: the same request without it will tell.
                result = Fault("format_refused", result.text)
            meter.add(f"fault/{result.kind}")
            return result
        meter.add("replies")
        try:
            reply = read_reply(result)
        except JudgeReplyError as error:
            raise JudgeReplyError(f"{self._endpoint.settings.name}: {error}") from None
        meter.add("prompt_tokens", reply.prompt_tokens)
        meter.add("completion_tokens", reply.completion_tokens)
        used = reply.prompt_tokens + reply.completion_tokens
        if used:
            self._endpoint.limiter.correct(tokens - used)
        return reply

    async def close(self) -> None:
        """Cancel what is under way."""
        await self._flights.close()


def _parsed(parse: Callable[[str], Parsed], text: str) -> Parsed:
    try:
        return parse(text)
    except RecursionError:
        raise JudgeReplyError("the reply's JSON is nested too deeply") from None
