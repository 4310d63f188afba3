"""One attempt at a reward server over HTTP, with every address checked at the moment of the connection."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urljoin

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from areal_x.reward.remote.faults import SHOWN_CHARACTERS, AttemptError
from areal_x.reward.remote.secret_headers import SecretHeaders
from areal_x.reward.remote.urls import HostPolicy, Target, TargetError, check_address, parse_url
from areal_x.reward.retries import retry_after_seconds

__all__ = ["CheckedResolver", "HttpTransport"]

_HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPS_METHOD = frozenset({307, 308})


class CheckedResolver(AbstractResolver):
    """Resolves a name and checks every address of the answer. The connection goes to the addresses that were checked:
    nobody asks again, so an answer that changes between check and connection has no effect."""

    def __init__(self, inner: AbstractResolver, policy: HostPolicy) -> None:
        self._inner = inner
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of ``host``; one that may not be called refuses them all."""
        results = await self._inner.resolve(host, port, family)
        for result in results:
            try:
                check_address(self._policy, host, ipaddress.ip_address(result["host"]))
            except TargetError as error:
                raise AttemptError("refused", str(error)) from None
        return results

    async def close(self) -> None:
        """Close the resolver that is asked."""
        await self._inner.close()


class HttpTransport:
    """Connections of one run; must be made on its event loop.

    Args:
        policy: where calls may go.
        secrets: headers that only the configured servers get.
        max_response_bytes: limit of a reply.
        max_redirects: how many redirects are followed. 0: a redirect is an error.
        resolver: who is asked for addresses; None: the system.
    """

    def __init__(
        self,
        policy: HostPolicy,
        secrets: SecretHeaders,
        max_response_bytes: int,
        max_redirects: int,
        resolver: AbstractResolver | None,
    ) -> None:
        self._policy = policy
        self._secrets = secrets
        self._max_response_bytes = max_response_bytes
        self._max_redirects = max_redirects
        checked = CheckedResolver(resolver or aiohttp.ThreadedResolver(), policy)
        # No cache of names, no proxy of the environment, no cookies: each would go around the check or carry state.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=checked, use_dns_cache=False, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def post(self, target: Target, body: bytes, timeout_seconds: float) -> bytes:
        """Send ``body`` and return the whole reply of status 2xx, within ``timeout_seconds`` from first to last byte.

        Raises:
            AttemptError: there is none.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._post(target, body)
        except TimeoutError:
            raise AttemptError("timeout", f"no complete reply within {timeout_seconds:.3g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise AttemptError("connect", f"cannot connect: {self._secrets.hide(str(error))}") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            shown = self._secrets.hide(f"{type(error).__name__}: {error}", SHOWN_CHARACTERS)
            raise AttemptError("reset", f"the connection broke: {shown}") from None

    async def _post(self, target: Target, body: bytes) -> bytes:
        start = target
        for hop in range(self._max_redirects + 1):
            secrets = self._secrets.values() if target.origin == start.origin else {}
            url = yarl.URL(target.url, encoded=True)
            async with self._session.post(
                url, data=body, headers=_HEADERS | secrets, allow_redirects=False
            ) as response:
                if response.status in _REDIRECTS:
                    target = self._redirected(target, response, hop)
                    continue
                if not 200 <= response.status < 300:
                    await self._raise_status(response)
                return await self._read(response)
        raise AssertionError("the last redirect raises")

    def _redirected(self, target: Target, response: aiohttp.ClientResponse, hop: int) -> Target:
        """Where a redirect leads, checked like a configured URL."""
        location, status = response.headers.get("Location", "").replace("\t", ""), response.status
        if self._secrets.hide(location) != location:
            text = f"HTTP {status}, a redirect that is not followed: its URL holds a secret of headers_env"
            raise AttemptError("redirect", text)
        try:
            new = parse_url(urljoin(target.url, location))
        except ValueError as error:
            raise AttemptError("redirect", f"HTTP {status}, a redirect to nowhere safe: {error}") from None
        if self._max_redirects == 0:
            text = f"HTTP {status}, a redirect to {new.origin}; put the final URL into urls, or set max_redirects"
            raise AttemptError("redirect", text)
        if hop == self._max_redirects:
            raise AttemptError("redirect", f"more than max_redirects={self._max_redirects} redirects, to {new.origin}")
        if status not in _KEEPS_METHOD:
            text = f"HTTP {status}, a redirect to {new.origin} that drops the request's body; it should be 307 or 308"
            raise AttemptError("redirect", text)
        try:
            self._policy.check_target(new)
        except TargetError as error:
            raise AttemptError("redirect", f"HTTP {status}, a redirect that is not followed: {error}") from None
        return new

    async def _raise_status(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        start = await self._read_start(response, SHOWN_CHARACTERS + self._secrets.longest)
        limit = len(start[:SHOWN_CHARACTERS].decode(errors="replace"))
        text = f"HTTP {status} {self._secrets.hide(start.decode(errors='replace'), limit)}".strip()
        if status == 429:
            raise AttemptError("http_429", text, retry_after_seconds(response.headers))
        if status >= 500:
            raise AttemptError("http_5xx", text, retry_after_seconds(response.headers))
        raise AttemptError("http_4xx", text)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            response.close()
            shown = self._secrets.hide(encoding, 40)
            raise AttemptError("bad_reply", f"the reply is compressed ({shown!r}), which was not asked for")
        body = await self._read_start(response, self._max_response_bytes + 1)
        if len(body) > self._max_response_bytes:
            response.close()
            raise AttemptError("too_large", f"the reply is larger than max_response_bytes={self._max_response_bytes}")
        return body

    async def _read_start(self, response: aiohttp.ClientResponse, num_bytes: int) -> bytes:
        """The reply up to ``num_bytes``. A connection with more to read is not used again."""
        parts, size = [], 0
        while size < num_bytes:
            part = await response.content.readany()
            if not part:
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)[:num_bytes]
