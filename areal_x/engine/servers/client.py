"""HTTP to one server: kept-alive connections, deadlines, and errors that name the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp

from areal_x.engine.servers.dialect import ServerError, ServerLostError

__all__ = ["ServerClient"]

_MAX_ERROR_TEXT = 500
_EVENT_PREFIX = b"data:"
_LAST_EVENT = b"[DONE]"
_PLAIN = "application/json"
_READ_BYTES = 2**20
# Far above anything that a server has to say in one reply or one message.
_MAX_REPLY_BYTES = 2**25
_END_SECONDS = 1.0
_TOO_LONG = f"it sent more than {_MAX_REPLY_BYTES // 2**20} MiB, which no server has to say"
# Servers close a connection that was idle for 5 s unless told otherwise; a request sent on it just then would break.
_IDLE_SECONDS = 4.0
# aiohttp raises a bare RuntimeError for what is read from a connection that was closed a moment before.
_BROKEN = (aiohttp.ClientError, OSError, RuntimeError)


class ServerClient:
    """Talks to one server.

    Args:
        base_url: such as ``http://127.0.0.1:8000``, without a path.
        model_name: as the server calls the model.
        api_key: sent as a bearer token; never part of a message or of ``repr``.
        call_timeout_seconds: for every call but a streamed generation, whose progress the engine watches.
    """

    def __init__(
        self, base_url: str, model_name: str, *, api_key: str | None = None, call_timeout_seconds: float = 120.0
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.model_name = model_name
        self._timeout = call_timeout_seconds
        self._key = api_key
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._streams: aiohttp.ClientSession | None = None
        self._calls: aiohttp.ClientSession | None = None
        self._replies: set[aiohttp.ClientResponse] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"ServerClient({self.base_url})"

    def _open(self, keep_alive: bool) -> aiohttp.ClientSession:
        if self._closed:
            raise ServerLostError(f"{self.base_url}: the connections to it were closed")
        # The engine bounds how much is in flight; a second bound here could only make a pause wait for a request.
        if keep_alive:
            if self._streams is None:
                self._streams = self._session(aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS))
            return self._streams
        # Servers close a connection after an error of their own, and whatever is sent on it next would break.
        if self._calls is None:
            self._calls = self._session(aiohttp.TCPConnector(limit=0, force_close=True))
        return self._calls

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            read_bufsize=_READ_BYTES,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float | None = None, **query: str
    ) -> Any:
        """Send one call; return its JSON, or the text of a reply that is none.

        Raises:
            ServerError: the server refused it.
            ServerLostError: no complete answer in time.
        """
        return await self._call("POST", path, body, timeout_seconds, query)

    async def get(self, path: str, *, timeout_seconds: float | None = None, **query: str) -> Any:
        """As ``post``."""
        return await self._call("GET", path, None, timeout_seconds, query)

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout_seconds: float | None,
        query: Mapping[str, str],
    ) -> Any:
        seconds = self._timeout if timeout_seconds is None else timeout_seconds
        try:
            async with (
                asyncio.timeout(seconds),
                self._open(keep_alive=False).request(
                    method, self.base_url + path, json=body, params=query, allow_redirects=False
                ) as reply,
            ):
                text = await _text(reply)
                if reply.status != 200:
                    raise self._refusal(path, reply, text)
        except TimeoutError as error:
            raise ServerLostError(f"{self.base_url}{path} did not answer within {seconds:g} s") from error
        except (*_BROKEN, ValueError) as error:
            raise ServerLostError(f"{self.base_url}{path}: {_words(error)}") from error
        return _value(text)

    def _refusal(self, path: str, reply: aiohttp.ClientResponse, text: str) -> ServerError:
        # Some servers repeat the key that they refuse.
        said = _said(text.replace(self._key, "(the key)") if self._key else text)
        if 300 <= reply.status < 400:
            said = f"it leads elsewhere ({reply.headers.get('Location', '')[:_MAX_ERROR_TEXT]}), where nothing is sent"
        return ServerError(f"{self.base_url}{path} answered {reply.status}: {said}", reply.status)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """The ``data:`` messages of a streamed reply as they come, without the last ``[DONE]``; a plain reply whole.

        Raises:
            ServerError: the server refused the request.
            ServerLostError: the connection broke, or the reply ended before ``[DONE]``.
        """
        try:
            async with self._open(keep_alive=True).post(
                self.base_url + path, json=body, allow_redirects=False
            ) as reply:
                self._replies.add(reply)
                try:
                    if reply.status != 200:
                        async with asyncio.timeout(self._timeout):
                            raise self._refusal(path, reply, await _text(reply))
                    if reply.content_type == _PLAIN:
                        yield await _read(reply)
                        return
                    rest = b""
                    while chunk := await reply.content.readany():
                        *lines, rest = (rest + chunk).split(b"\n")
                        for line in lines:
                            if line.startswith(_EVENT_PREFIX):
                                message = line[len(_EVENT_PREFIX) :].strip()
                                if message == _LAST_EVENT:
                                    # Read to its end, a reply leaves its connection open for the next request.
                                    with contextlib.suppress(TimeoutError):
                                        async with asyncio.timeout(_END_SECONDS):
                                            await _read(reply)
                                    return
                                yield message
                        if len(rest) > _MAX_REPLY_BYTES:
                            raise ValueError(_TOO_LONG)
                finally:
                    self._replies.discard(reply)
        except (*_BROKEN, ValueError) as error:
            raise ServerLostError(f"{self.base_url}{path}: {_words(error)}") from error
        raise ServerLostError(f"{self.base_url}{path}: the reply ended before it was complete")

    async def close(self) -> None:
        """Close all connections; requests in flight and later ones end with ``ServerLostError``. Safe to call twice."""
        self._closed = True
        for reply in self._replies:
            # Closing a session does not wake those who read from it.
            reply.content.set_exception(aiohttp.ClientConnectionError("the connection was closed"))
            reply.close()
        for session in (self._streams, self._calls):
            if session is not None:
                await session.close()
        self._streams = self._calls = None


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    """All of a reply that has an end.

    Raises:
        ValueError: it goes on and on.
    """
    chunks: list[bytes] = []
    num_bytes = 0
    while chunk := await reply.content.readany():
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > _MAX_REPLY_BYTES:
            raise ValueError(_TOO_LONG)
    return b"".join(chunks)


async def _text(reply: aiohttp.ClientResponse) -> str:
    return (await _read(reply)).decode("utf-8", "replace")


def _value(text: str) -> Any:
    """The JSON in a text, or the text if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _said(text: str) -> str:
    """What a server says in an error, without the JSON around it."""
    found = _value(text)
    for key in ("error", "message", "detail"):
        if isinstance(found, dict):
            found = found.get(key, found)
    words = found if isinstance(found, str) else json.dumps(found)
    return words if len(words) <= _MAX_ERROR_TEXT else words[:_MAX_ERROR_TEXT] + "..."
