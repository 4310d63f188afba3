"""A real HTTP server that answers as told, and fails as told, counting both.

    async with FaultServer(answer, ["429", None, "reset"]) as server:
        ...  # ask server.url
        assert server.injected == {"429": 1, "reset": 1}

``answer`` makes the JSON of a good reply from the request's JSON. The script names a fault for each request in turn
(None: a good reply); after its end every reply is good. ``release`` holds all replies back until it is set.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

__all__ = ["FaultServer", "Seen", "chat_reply"]


@dataclass
class Seen:
    """A request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: Any
    at: float


def chat_reply(text: str | None, prompt_tokens: int = 100, completion_tokens: int = 5, **choice: Any) -> dict[str, Any]:
    """The JSON of a chat completion."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


class FaultServer:
    """The server; use it with ``async with``.

    Faults: ``429``, ``500`` or any status, alone or with ``;name=value`` headers (a value ``date+N`` is an HTTP date
    N seconds ahead) and ``|text`` as the error's message; ``reset`` (before any byte), ``cut`` (the body ends before
    its length), ``never``, ``drip`` (a byte each 50 ms), ``truncated`` (half of the JSON), ``no_json``, ``empty``
    (no choices), ``as_text`` (a good reply that is not declared as JSON).
    """

    def __init__(
        self,
        answer: Callable[[Any], Any],
        script: Iterable[str | None] | Mapping[int, str] = (),
        delay_seconds: float = 0.0,
        release: asyncio.Event | None = None,
    ) -> None:
        self.injected: Counter[str] = Counter()
        self.seen: list[Seen] = []
        self.num_now = self.num_at_once = 0
        self.url = ""
        self._answer, self._delay = answer, delay_seconds
        self._script = script if isinstance(script, Mapping) else dict(enumerate(script))
        self._release = release
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> FaultServer:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        number = len(self.seen)
        self.seen.append(
            Seen(request.path, dict(request.headers), json.loads(body) if body else None, time.monotonic())
        )
        self.num_now += 1
        self.num_at_once = max(self.num_at_once, self.num_now)
        try:
            fault = self._script.get(number)
            if self._delay:
                await asyncio.sleep(self._delay)
            if self._release is not None:
                await self._release.wait()
            if fault is not None:
                self.injected[fault] += 1
                return await self._fail(request, fault, body)
            return web.json_response(self._answer(self.seen[number].body))
        finally:
            self.num_now -= 1

    async def _fail(self, request: web.Request, fault: str, body: bytes) -> web.StreamResponse:
        good = json.dumps(chat_reply("Score: 7") if "messages" in body.decode() else {"reward": 1.0}).encode()
        if fault[:3].isdigit():
            return _status(fault)
        transport = request.transport
        if transport is None:  # The client has gone.
            return web.Response()
        if fault == "reset":
            transport.abort()
            return web.Response()
        if fault == "never":
            await self._closing.wait()
            return web.Response()
        if fault == "as_text":
            return web.Response(body=good, content_type="text/plain")
        if fault in ("truncated", "no_json", "empty"):
            text = {"truncated": good[: len(good) // 2], "no_json": b'"hm"', "empty": b'{"choices": []}'}[fault]
            return web.Response(body=text, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(good))})
        await response.prepare(request)
        if fault == "cut":
            await response.write(good[:20])
            transport.close()
            return response
        assert fault == "drip", f"no such fault: {fault}"
        for byte in good:
            if self._closing.is_set() or request.transport is None or request.transport.is_closing():
                break
            await response.write(bytes([byte]))
            await asyncio.sleep(0.05)
        return response


def _status(fault: str) -> web.Response:
    fault, _, message = fault.partition("|")
    status, *headers = fault.split(";")
    found = {}
    for header in headers:
        name, _, value = header.partition("=")
        if value.startswith("date+"):
            value = email.utils.formatdate(time.time() + float(value[5:]), usegmt=True)
        found[name] = value
    error = {"error": {"message": message or f"status {status}", "type": "stub", "code": None}}
    return web.json_response(error, status=int(status), headers=found)
