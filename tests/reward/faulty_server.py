"""A real reward server with faults on purpose, and what the tests of remote rewards share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from areal_x.reward.remote import RemoteReward

OK = {"reward": 1.0}


class FaultyServer:
    """Answers the requests in the order of ``script`` (the last entry goes on for ever), and counts what it did.

    Entries: ``ok``, ``429``, ``429:SECONDS`` (with Retry-After), another status, ``reset``, ``never``, ``drip``,
    ``truncated``.
    """

    def __init__(self, script: Sequence[str] | Callable[[dict[str, Any]], str] = ("ok",), delay: float = 0.0) -> None:
        self.script = script
        self.delay = delay
        self.injected: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.in_flight = self.most_in_flight = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        self.requests.append(payload)
        self.headers.append(request.headers)
        number = len(self.requests) - 1
        fault = self.script(payload) if callable(self.script) else self.script[min(number, len(self.script) - 1)]
        self.injected[fault.partition(":")[0]] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            return await self.answer(request, payload, fault)
        finally:
            self.in_flight -= 1

    async def answer(self, request: web.Request, payload: dict[str, Any], fault: str) -> web.StreamResponse:
        if fault == "ok":
            return web.json_response(self.reward(payload))
        if fault.isdigit() or fault.startswith("429:"):
            status, _, seconds = fault.partition(":")
            return web.Response(status=int(status), text="no", headers={"Retry-After": seconds} if seconds else None)
        assert request.transport is not None
        if fault == "reset":
            request.transport.abort()
            return web.Response()
        if fault == "never":
            await asyncio.sleep(60)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if fault == "truncated":
            await response.write(b'{"reward": 1')
        if fault == "drip":
            for byte in b'{"reward": 1.0}' * 100:
                await response.write(bytes([byte]))
                await asyncio.sleep(0.05)
        await response.write_eof()
        return response

    def reward(self, payload: dict[str, Any]) -> Any:
        if "response" in payload:
            return {"reward": float(len(payload["response"])), "label": payload["label"]}
        lengths = [float(len(query)) for query in payload["query"]]
        return {"rewards": lengths, "scores": [1.0] * len(lengths), "extra_logs": {"length": lengths, "tag": "x"}}


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[int]:
    """Serve ``handler`` for every path; gives the port."""
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def faulty(script: Any = ("ok",), delay: float = 0.0) -> AsyncIterator[FaultyServer]:
    server = FaultyServer(script, delay)
    async with serving(server.handle) as port:
        server.url = f"http://127.0.0.1:{port}/score"
        yield server


@contextlib.asynccontextmanager
async def started(urls: str | Sequence[str], **options: Any) -> AsyncIterator[RemoteReward]:
    """A remote reward with short pauses, from start to close."""
    defaults = {"timeout_seconds": 8.0, "deadline_seconds": 60.0, "backoff_seconds": 0.01, "cooldown_seconds": 0.05}
    reward = RemoteReward(urls=urls, **(defaults | options))
    await reward.start()
    try:
        yield reward
    finally:
        await reward.close()


def free_port() -> int:
    """A port for a server that starts later. The kernel's own choice would be one that it may give away meanwhile."""
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, max(below, 20_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class FakeResolver(AbstractResolver):
    """Gives, for each name, the addresses of its list one after another; the last one stays."""

    def __init__(self, **names: Sequence[str | list[str]]) -> None:
        self.names = {name.replace("_", "."): list(answers) for name, answers in names.items()}
        self.asked: Counter[str] = Counter()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        if host not in self.names:
            raise OSError(None, "Name or service not known")
        answers = self.names[host]
        answer = answers[min(self.asked[host], len(answers) - 1)]
        self.asked[host] += 1
        addresses = [answer] if isinstance(answer, str) else answer
        return [
            ResolveResult(hostname=host, host=one, port=port, family=10 if ":" in one else 2, proto=0, flags=0)
            for one in addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def bare_post(url: str, resolver: AbstractResolver | None = None, headers: dict[str, str] | None = None) -> str:
    """What an unguarded client does: it goes wherever names and redirects lead."""
    connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session,
        session.post(url, json={"prompt": "p"}, headers=headers) as response,
    ):
        return await response.text()


def main(port: int) -> None:
    """Serve in a process of its own, to be killed. Says when it listens."""

    async def serve() -> None:
        server = FaultyServer(delay=0.005)
        async with serving(server.handle, port=port) as bound:
            print(json.dumps({"port": bound}), flush=True)
            await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main(int(sys.argv[1]))
