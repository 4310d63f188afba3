"""Runs inside vLLM's API server: no route without the key.

``--api-key`` and ``VLLM_API_KEY`` of vLLM guard only paths that begin with /v1, /v2, /inference or /cohere. The routes
that pause, update and call methods of the workers are open to every process that reaches the port, so a server that
this library starts gets this on top (``--middleware``). Standard library only.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["KeyGuard"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_REFUSAL = b'{"error":{"message":"Unauthorized: the key is missing or wrong","type":"Unauthorized","code":401}}'


class KeyGuard:
    """ASGI middleware that answers 401 to every HTTP request without ``Authorization: Bearer $VLLM_API_KEY``.

    Raises:
        KeyError: the variable is not set; a server without a key must not be started with this guard.
    """

    def __init__(self, app: _App) -> None:
        self._app = app
        self._expected = b"Bearer " + os.environ["VLLM_API_KEY"].encode()

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan" or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _has_key(self, scope: _Message) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
