"""A fake OpenAI-compatible endpoint: answers over real HTTP what a test tells it to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "key-0123456789"


def completion(text: str | None, finish_reason: str = "stop", chat: bool = True) -> dict[str, Any]:
    """A reply of one choice."""
    inner: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {"id": "x", "choices": [{"index": 0, "finish_reason": finish_reason, **inner}]}


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


@dataclass
class FakeEndpoint:
    """``answer`` gets each body and returns a reply, or a whole response; all bodies are kept."""

    answer: Callable[[dict[str, Any]], dict[str, Any] | web.Response]
    models: list[str] | None = field(default_factory=lambda: ["m"])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    base_url: str = ""

    async def complete(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            given = request.headers.get("Authorization", "")
            return refusal(401, f"Incorrect API key provided: {given}")
        self.bodies.append(await request.json())
        answer = self.answer(self.bodies[-1])
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    async def list_models(self, request: web.Request) -> web.Response:
        if self.models is None:
            return refusal(404, "no such path")
        return web.json_response({"data": [{"id": name} for name in self.models]})


@asynccontextmanager
async def running(endpoint: FakeEndpoint) -> AsyncIterator[FakeEndpoint]:
    application = web.Application()
    application.router.add_post("/v1/chat/completions", endpoint.complete)
    application.router.add_post("/v1/completions", endpoint.complete)
    application.router.add_get("/v1/models", endpoint.list_models)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield endpoint
    finally:
        await runner.cleanup()
