"""The HTTP client against servers that answer what no server should."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from areal_x.engine.servers import client as client_module
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import ServerError, ServerLostError

KEY = "sk-do-not-show-this"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def answering(
    head: bytes, again: bytes = b"", pause: float = 0.0, seconds: float = 120.0
) -> AsyncIterator[ServerClient]:
    """A client of a server that answers each request with ``head`` and then with ``again``, for ever."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while again:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(pause)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = ServerClient(f"http://127.0.0.1:{port}", "m", api_key=KEY, call_timeout_seconds=seconds)
    try:
        yield client
    finally:
        await client.close()
        server.close()


def reply(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


async def streamed(client: ServerClient) -> list[bytes]:
    return [message async for message in client.stream("/generate", {})]


@pytest.mark.parametrize("body", [b"\xff\xfe\x80 no text", b"[" * 100_000, b"<html>hello</html>"])
async def test_a_reply_that_is_no_json_is_a_text(body: bytes) -> None:
    async with answering(reply(body)) as client:
        assert await client.get("/x") == body.decode(errors="replace")
    async with answering(reply(body, "503 Later")) as client:
        with pytest.raises(ServerError, match="answered 503"):
            await client.get("/x")
        with pytest.raises(ServerError, match="answered 503"):
            await streamed(client)


async def test_a_key_that_a_server_repeats_is_not_shown() -> None:
    # Cut to a length that it may have, a message must not hold the first half of a key.
    for said in (f"Incorrect API key: {KEY}.", "x" * (client_module._MAX_ERROR_TEXT - 8) + KEY):
        async with answering(reply(said.encode(), "401 Unauthorized")) as client:
            for call in (client.get("/x"), client.post("/x", {}), streamed(client)):
                with pytest.raises(ServerError, match="answered 401") as caught:
                    await call
                assert KEY[:6] not in str(caught.value)


async def test_redirects_are_not_followed_and_say_where_to() -> None:
    async with answering(reply(b"", "302 Found", "Location: http://169.254.169.254/latest")) as client:
        with pytest.raises(ServerError, match=r"answered 302: it leads elsewhere \(http://169\.254\.169\.254/latest\)"):
            await client.get("/x")


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/event-stream"])
@pytest.mark.parametrize("status", ["200 OK", "500 Broken"])
async def test_replies_without_end_are_cut_off(content_type: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_MAX_REPLY_BYTES", 2**20)
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    async with answering(head, b"10000\r\n" + b"x" * 0x10000 + b"\r\n") as client:
        for call in (client.get("/x"), streamed(client)):
            with pytest.raises(ServerLostError, match="sent more than"):
                await asyncio.wait_for(call, 60.0)


async def test_what_unpacks_to_more_than_a_reply_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_MAX_REPLY_BYTES", 2**20)
    packed = gzip.compress(bytes(2**26))
    async with answering(reply(packed, "200 OK", "Content-Encoding: gzip", "Content-Type: application/json")) as client:
        for call in (client.get("/x"), streamed(client)):
            with pytest.raises(ServerLostError, match="sent more than"):
                await call


async def test_an_error_that_drips_ends_a_request_in_time() -> None:
    head = b"HTTP/1.1 500 Broken\r\nContent-Length: 1000000\r\n\r\n"
    async with answering(head, b"x", pause=0.05, seconds=1.0) as client:
        started = time.monotonic()
        with pytest.raises(ServerLostError):
            await streamed(client)
        assert time.monotonic() - started < 60.0


async def test_an_error_that_drips_ends_with_its_client() -> None:
    head = b"HTTP/1.1 500 Broken\r\nContent-Length: 1000000\r\n\r\n"
    async with answering(head, b"x", pause=0.05) as client:
        request = asyncio.create_task(streamed(client))
        await asyncio.sleep(0.3)
        await client.close()
        with pytest.raises(ServerLostError, match="closed"):
            await asyncio.wait_for(request, 60.0)


async def test_what_follows_the_last_message_is_not_waited_for() -> None:
    head = EVENTS + b"e\r\ndata: {}\n\ndata\r\n9\r\n: [DONE]\n\r\n"
    async with answering(head, b"3\r\n: \n\r\n", pause=0.05) as client:
        assert await asyncio.wait_for(streamed(client), 60.0) == [b"{}"]
