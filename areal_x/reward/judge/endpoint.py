"""One client for each model of a run: ``AsyncOpenAI`` on aiohttp, with the limits that all judges of it share."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from areal_x.api.errors import ConfigError, MissingExtraError
from areal_x.reward.judge.faults import Fault, connection_fault, status_fault_kind
from areal_x.reward.judge.gate import ConcurrencyGate
from areal_x.reward.judge.key_filter import KeyFilter
from areal_x.reward.judge.rate_limit import RateLimiter
from areal_x.reward.judge.reply_body import ReplyRefusedError, read_body
from areal_x.reward.judge.settings import ServerSettings, read_api_key
from areal_x.reward.retries import retry_after_seconds

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["Endpoint", "close_endpoint", "open_endpoint"]

_SPARE_DESCRIPTORS = 64
_MAX_SERVER_TEXT = 300
_OPENAI_KEY = "OPENAI_API_KEY"
_ADVICE = {
    "http_400": "check the model's name, the options in sampling, and the length of the prompt",
    "http_401": "check the key in {key}",
    "http_403": "check what the key in {key} may use",
    "http_404": "check model and base_url (which usually ends in /v1)",
    "quota": "the account behind {key} is used up",
    "redirect": "set base_url to where it leads, if that server is meant: redirects are not followed, nor sent the key",
    "tls": "check the server's certificate, and http or https in base_url",
}
_endpoints: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str, str | None], Endpoint]]
_endpoints = weakref.WeakKeyDictionary()


class Endpoint:
    """A model on a server: the client, the places and the turns.

    Raises:
        ConfigError: no key, or fewer file descriptors than connections.
        MissingExtraError: the client's aiohttp transport is not installed.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.num_users = 0
        self.gate = ConcurrencyGate(settings.max_concurrent)
        self.limiter = RateLimiter(settings.requests_per_minute, settings.tokens_per_minute)
        _check_descriptors(settings.max_concurrent)
        key = read_api_key(settings.api_key_env)
        self._filter = KeyFilter(key if settings.api_key_env is not None else None)
        # The client stands on httpx2 since its third version.
        self._http = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
        self._client = _make_client(settings, key, self._http)

    def __repr__(self) -> str:
        return f"Endpoint({self.settings.name})"

    async def post(self, body: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any] | Fault:
        """Send one chat request, once. Every way to fail is a ``Fault``: no exception that holds the request leaves.

        With the plain response the client builds no models from the JSON, which is half of its cost, and the key can be
        taken out of the text before anything is made of it.
        """
        import aiohttp
        import openai

        try:
            async with asyncio.timeout(timeout_seconds):
                reply = await self._client.post("/chat/completions", cast_to=self._http.Response, body=body)
        except openai.APIStatusError as error:
            return self._status_fault(error)
        except TimeoutError:
            return Fault("timeout", f"no complete reply within {timeout_seconds:.3g} s")
        except ReplyRefusedError as error:
            return Fault(error.kind, str(error))
        except (openai.OpenAIError, aiohttp.ClientError, OSError, ValueError) as error:
            fault = connection_fault(error)
            return Fault(fault.kind, self._without_key(fault.text))
        return self._decoded(reply.content)

    def _decoded(self, body: bytes) -> dict[str, Any] | Fault:
        """The JSON object of a reply, without the key. Some servers forget to declare it as JSON."""
        try:
            found = json.loads(self._filter.clean(body.decode("utf-8-sig")))
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
        return Fault("truncated", f"the reply is no JSON object: {self._without_key(body.decode(errors='replace'))!r}")

    def _status_fault(self, error: APIStatusError) -> Fault:
        kind = status_fault_kind(error.status_code, error.code)
        headers = error.response.headers
        detail = error.body.get("message") if isinstance(error.body, dict) else error.body
        if not isinstance(detail, str):
            detail = error.response.text
        text = f"{error.status_code} {self._without_key(detail)}" if detail else str(error.status_code)
        if kind == "redirect":
            text += _redirect_target(headers.get("location", ""))
        advice = _ADVICE.get(kind, "").format(key=self.settings.api_key_env or "api_key_env, which is null")
        return Fault(kind, f"{text}; {advice}" if advice else text, retry_after_seconds(headers))

    def _without_key(self, text: str) -> str:
        """What a server said, short, and without the key that some repeat."""
        text = self._filter.clean(text)
        return text if len(text) <= _MAX_SERVER_TEXT else text[:_MAX_SERVER_TEXT] + "..."

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _redirect_target(location: str) -> str:
    try:
        target = urlsplit(location)
    except ValueError:
        return ""
    return f" to {target.scheme}://{target.hostname}" if target.hostname else ""


def _make_client(settings: ServerSettings, key: str, http_library: Any) -> AsyncOpenAI:
    import openai

    async def bound(response: Any) -> None:
        body = await read_body(response, settings.max_response_bytes)
        await response.stream.aclose()
        response.stream = http_library.ByteStream(body)
        # A server may name any of Python's codecs, also those that decompress.
        response.encoding = "utf-8"

    # None would mean 100 connections to aiohttp. Kept alive, a connection saves a third of a request's cost.
    limits = http_library.Limits(
        max_connections=settings.max_concurrent,
        max_keepalive_connections=settings.max_concurrent,
        keepalive_expiry=15.0,
    )
    try:
        http_client = openai.DefaultAioHttpClient(
            limits=limits,
            timeout=None,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [bound]},
            proxy=settings.proxy,
            # The environment names proxies, which would be sent the key, and a .netrc; but also certificates.
            trust_env=False,
            verify=http_library.create_ssl_context(),
        )
    except RuntimeError as error:
        raise MissingExtraError(
            "reward 'judge' needs the openai package's aiohttp transport: openai[aiohttp]"
        ) from error
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=settings.base_url,
        http_client=http_client,
        max_retries=0,
        timeout=None,
        default_headers=None if settings.api_key_env == _OPENAI_KEY else _only_key(key),
    )


def _only_key(key: str) -> dict[str, Any]:
    """Headers that keep what the environment tells the client about an OpenAI account from any other server."""
    import openai

    names = ["OpenAI-Organization", "OpenAI-Project"]
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    names += [line.partition(":")[0].strip() for line in lines if ":" in line]
    kept_back: dict[str, Any] = {name: openai.Omit() for name in names if name.lower() != "authorization"}
    return {**kept_back, "Authorization": f"Bearer {key}"}


def _check_descriptors(num_connections: int) -> None:
    try:
        import resource
    except ImportError:  # No such limit on this system.
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and num_connections + _SPARE_DESCRIPTORS > limit:
        raise ConfigError(
            f"reward 'judge': max_concurrent={num_connections} connections need more file descriptors than this "
            f"process may have ({limit}); raise that (ulimit -n) or lower max_concurrent"
        )


def open_endpoint(settings: ServerSettings) -> Endpoint:
    """The running loop's endpoint of these settings, made at the first use; each user closes it once.

    Raises:
        ConfigError: another judge of the run states other limits for the same model.
    """
    of_loop = _endpoints.setdefault(asyncio.get_running_loop(), {})
    key = (settings.base_url, settings.model, settings.api_key_env)
    endpoint = of_loop.get(key)
    if endpoint is None:
        endpoint = of_loop[key] = Endpoint(settings)
    elif endpoint.settings != settings:
        raise ConfigError(
            f"reward 'judge': two judges use {settings.name} with different limits; max_concurrent, "
            "requests_per_minute, tokens_per_minute, proxy and max_response_bytes hold for the whole run, so state the "
            "same for both"
        )
    endpoint.num_users += 1
    return endpoint


async def close_endpoint(endpoint: Endpoint) -> None:
    """One user less; the last one closes the connections."""
    endpoint.num_users -= 1
    if endpoint.num_users == 0:
        of_loop = _endpoints.get(asyncio.get_running_loop(), {})
        for key in [key for key, one in of_loop.items() if one is endpoint]:
            del of_loop[key]
        await endpoint.close()
