"""A fake inference server: real HTTP and a scripted will of its own, but an arithmetic formula in place of a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from aiohttp import web

from areal_x.api.errors import EngineError
from areal_x.api.records import ModelRequest, ModelResponse
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import Finish, Piece, ServerDialect, ServerError, ServerFacts
from areal_x.engine.servers.server_engine import ServerEngine
from areal_x.engine.servers.settings import EngineSettings
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.staging import OpenWrite
from areal_x.engine.transfer.transport import WeightTransport

VOCAB = 97
MAX_LENGTH = 400


def sampled(context: Sequence[int], version: int) -> tuple[int, float]:
    """The token after ``context`` and its log-probability: of all before it, and of the weights' version."""
    token = (sum(context[-7:]) * 31 + len(context) * 7 + version * 13) % VOCAB
    return token, -float(version) - token / 1000


def check_response(response: ModelResponse, num_tokens: int) -> set[int]:
    """Every token is what its version samples after those before it; returns the versions."""
    tokens, context = response.output_ids.tolist(), response.input_ids.tolist()
    assert len(tokens) == num_tokens
    end = 0
    for span in response.version_spans:
        assert span.start == end < span.end
        end = span.end
        for place in range(span.start, span.end):
            token, logprob = sampled(context + tokens[:place], span.version)
            assert tokens[place] == token, (place, response.version_spans)
            assert abs(response.logprobs[place] - logprob) < 1e-4
    assert end == len(tokens)
    return {span.version for span in response.version_spans}


@dataclass
class FakeServer:
    """One server; the fields are its script and can be changed at any time."""

    version: int | None = None
    delay: float = 0.0005
    """Seconds for each token."""
    interval: int = 4
    """Tokens of one message."""
    refusals: list[int] = field(default_factory=list)
    """Statuses of the next generations."""
    load_failures: int = 0
    """So many loads fail, half done."""
    load_seconds: float = 0.0
    resume_failures: int = 0
    """So many times it goes on and says that it does not."""
    lie: Callable[[list[Any]], list[Any]] = lambda spans: spans
    """Changes what it says of versions."""
    short_by: int = 0
    """Ends each request for its length with so many tokens missing."""
    ready: bool = True
    health_hangs: bool = False
    facts: dict[str, Any] = field(default_factory=lambda: {"max_length": MAX_LENGTH})

    def __post_init__(self) -> None:
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.num_active = 0
        self.is_paused = False
        self.is_broken = self.is_dead = False
        self.asleep = False
        self.kv_on_update = ""
        self.abort_epoch = 0
        self.going = asyncio.Event()
        self.going.set()
        self._transports: set[Any] = set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/health", self._health)
        app.router.add_post("/tell/{what}", self._tell)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def die(self) -> None:
        """End without a word, like a process that is killed."""
        self.is_dead = True
        for transport in list(self._transports):
            if transport is not None:
                transport.abort()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    def hang(self) -> None:
        """Make no token any more, while ``/health`` answers."""
        self.going.clear()

    def break_connections(self) -> None:
        """Break off every reply, and live on."""
        for transport in list(self._transports):
            transport.abort()

    async def _health(self, request: web.Request) -> web.Response:
        while self.health_hangs and not self.is_dead:
            await asyncio.sleep(0.005)
        return web.Response()

    async def _tell(self, request: web.Request) -> web.Response:
        what, body = request.match_info["what"], await request.json()
        self.calls.append(what)
        match what:
            case "facts":
                return web.json_response(self.facts, status=200 if self.ready else 503)
            case "pause":
                self.is_paused, self.kv_on_update = True, body["kv_on_update"]
                if body["kv_on_update"] == "abort":
                    self.abort_epoch += 1
                self.going.clear()
            case "resume":
                if self.is_broken or self.asleep:
                    raise AssertionError("resumed with half the weights")
                self.is_paused = False
                self.going.set()
                if self.resume_failures:
                    self.resume_failures -= 1
                    return web.Response(status=500, text="it went wrong in the end")
            case "load":
                assert self.is_paused and not self.asleep, "loaded while it generates"
                self.is_broken = True
                await asyncio.sleep(self.load_seconds)
                if self.load_failures:
                    self.load_failures -= 1
                    return web.Response(status=500, text="half the weights are missing")
                self.is_broken, self.version = False, body["version"]
            case "version":
                self.version = body["version"]
            case "sleep":
                self.is_paused = self.asleep = True
                self.going.clear()
            case "wake_up":
                self.asleep, self.is_broken = False, True
        return web.json_response({})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.refusals:
            return web.json_response({"error": "refused"}, status=self.refusals.pop(0))
        reply = web.StreamResponse()
        self._transports.add(request.transport)
        self.num_active += 1
        try:
            await reply.prepare(request)
            await self._stream(body, reply)
        finally:
            self.num_active -= 1
            self._transports.discard(request.transport)
        return reply

    async def _stream(self, body: dict[str, Any], reply: web.StreamResponse) -> None:
        context, versions, new = list(body["input_ids"]), [], []
        reason, epoch = None, self.abort_epoch
        while reason is None:
            if not self.going.is_set():
                await self._going_or_aborted(epoch)
            if self.abort_epoch != epoch:
                reason = "abort"
            else:
                assert not self.is_broken, "a token of half the weights"
                token, logprob = sampled(context, -1 if self.version is None else self.version)
                context.append(token)
                versions.append(self.version)
                new.append((token, logprob))
                if token in body["stop_ids"]:
                    reason = "stop"
                elif len(versions) == body["max_new_tokens"] - self.short_by:
                    reason = "length"
            if reason is not None or len(new) == self.interval:
                said: dict[str, Any] = {"new": new}
                if reason is not None:
                    said |= {"reason": reason, "spans": self.lie(_spans(versions))}
                await reply.write(b"data: " + json.dumps(said).encode() + b"\n\n")
                new = []
            await asyncio.sleep(self.delay)
        await reply.write(b"data: [DONE]\n\n")

    async def _going_or_aborted(self, epoch: int) -> None:
        while not self.going.is_set() and self.abort_epoch == epoch:
            if self.is_dead:
                raise ConnectionResetError
            await asyncio.sleep(0.002)


def _spans(versions: Sequence[Any]) -> list[Any]:
    starts = [i for i in range(len(versions)) if i == 0 or versions[i] != versions[i - 1]]
    ends = [*starts[1:], len(versions)] if starts else []
    return [[a, b, versions[a]] for a, b in zip(starts, ends, strict=True)]


class FakeReader:
    def read(self, message: bytes) -> Piece:
        said = json.loads(message)
        ids, logprobs = [pair[0] for pair in said["new"]], [pair[1] for pair in said["new"]]
        if "reason" not in said:
            return Piece(ids, logprobs)
        return Piece(ids, logprobs, Finish(said["reason"], [tuple(span) for span in said["spans"]]))


class FakeDialect(ServerDialect):
    name = "fake"
    generate_path = "/generate"

    def request_body(
        self, request: ModelRequest, request_id: str, input_ids: list[int], max_new_tokens: int, seed: int | None
    ) -> dict[str, Any]:
        stops = list(request.sampling.stop_token_ids)
        return {"id": request_id, "input_ids": input_ids, "max_new_tokens": max_new_tokens, "stop_ids": stops}

    def reply_reader(self) -> FakeReader:
        return FakeReader()

    async def facts(self, server: ServerClient) -> ServerFacts:
        return ServerFacts("fake", **await server.post("/tell/facts", {}))

    async def pause(self, server: ServerClient, kv_on_update: str) -> None:
        await server.post("/tell/pause", {"kv_on_update": kv_on_update})

    async def resume(self, server: ServerClient) -> None:
        await server.post("/tell/resume", {})

    async def join(self, server: ServerClient, order: dict[str, Any]) -> None:
        await server.post("/tell/join", order)

    async def load(self, server: ServerClient, order: dict[str, Any], version: int, kv_on_update: str) -> None:
        await server.post("/tell/load", {"order": order, "version": version})

    async def set_version(self, server: ServerClient, version: int) -> None:
        await server.post("/tell/version", {"version": version})

    async def sleep(self, server: ServerClient) -> None:
        await server.post("/tell/sleep", {})

    async def wake_up(self, server: ServerClient) -> None:
        await server.post("/tell/wake_up", {})


class FakeTransport(WeightTransport):
    """Stages version numbers. ``collective``: servers have to join, and the trainer sends."""

    way = "fake"

    def __init__(self, collective: bool = False) -> None:
        super().__init__(TensorLayout([]))
        self.collective = collective
        self.staged: int | None = None
        self.calls: list[str] = []
        self.send_failures = 0

    @property
    def version(self) -> int | None:
        return self.staged

    def write(self, version: int, named_tensors: Iterable[tuple[str, torch.Tensor]] = ()) -> None:
        super().write(version, named_tensors)

    def begin(self, version: int) -> OpenWrite:
        return OpenWrite(self.layout.order(version), {}, None)

    def finish(self, write: OpenWrite, sums: Mapping[str, int]) -> None:
        self.staged = write.order.version

    def abandon(self, write: OpenWrite) -> None: ...

    def join_orders(self, num_servers: int) -> list[dict[str, Any]]:
        return [{"rank": rank, "of": num_servers} for rank in range(num_servers)] if self.collective else []

    def join(self) -> None:
        self.calls.append("join")

    def load_order(self) -> dict[str, Any]:
        return {"way": "fake", "version": self.staged}

    def send(self) -> None:
        if self.collective:
            self.calls.append("send")
        if self.send_failures:
            self.send_failures -= 1
            raise EngineError("the trainer's part broke")

    def close(self) -> None:
        pass


class FakeProcess:
    """Stands for the process of a fake server."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.pid = 1
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        return -9

    async def end(self) -> None:
        self._ended.set()
        await self.server.die()

    async def stop(self, grace_seconds: float = 5.0) -> None:
        await self.end()

    def tail(self) -> str:
        return "fake server's last line"


class FakeLaunch:
    """Starts fake servers; ``servers`` are those started so far, the newest last."""

    def __init__(self, restarts: bool = True, **script: Any) -> None:
        self.restarts = restarts
        self.script = script
        self.servers: list[FakeServer] = []
        self.processes: list[FakeProcess] = []

    @property
    def server(self) -> FakeServer:
        return self.servers[-1]

    async def __call__(self) -> tuple[str, Any]:
        if not self.restarts and self.servers:
            return self.server.url, None
        server = FakeServer(**self.script)
        await server.start()
        self.servers.append(server)
        if not self.restarts:
            return server.url, None
        self.processes.append(FakeProcess(server))
        return server.url, self.processes[-1]

    async def kill(self) -> None:
        await self.processes[-1].end()


def make_engine(
    launches: Sequence[FakeLaunch], transport: FakeTransport | None = None, **settings: Any
) -> ServerEngine:
    """An engine of fake servers whose notices are dropped."""
    chosen = {"vocab_size": VOCAB, "max_length": MAX_LENGTH, "num_slots": 64, "notify": lambda text: None, **settings}
    return ServerEngine(FakeDialect(), launches, EngineSettings(**chosen), transport)


__all__ = [
    "MAX_LENGTH",
    "VOCAB",
    "FakeDialect",
    "FakeLaunch",
    "FakeServer",
    "FakeTransport",
    "ServerError",
    "check_response",
    "make_engine",
    "sampled",
]
