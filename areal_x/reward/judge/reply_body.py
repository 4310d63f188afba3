"""The bytes of a reply, counted while they come, so that no server can fill the memory or hold up the event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

__all__ = ["ReplyRefusedError", "read_body"]

_MAX_ERROR_BYTES = 65_536
"""What is read of a reply that is an error; it is shown in part only."""


class ReplyRefusedError(ValueError):
    """A reply that is not read: its ``kind`` is that of a ``Fault``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


async def read_body(response: Any, max_bytes: int) -> bytes:
    """The whole body of an httpx response, at most ``max_bytes`` of it.

    Of a reply that is no success the beginning is enough, and none of it where it is compressed.

    Raises:
        ReplyRefusedError: a success that is larger, or compressed: a few bytes can become gigabytes.
    """
    is_success = 200 <= response.status_code < 300
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        if is_success:
            text = f"the reply is compressed ({encoding[:40]!r}), which was not asked for"
            raise ReplyRefusedError("compressed", f"{text}; turn that off at the server or the proxy before it")
        # The client would decompress what it is given.
        del response.headers["content-encoding"]
        return b""
    limit = max_bytes if is_success else min(max_bytes, _MAX_ERROR_BYTES)
    declared = response.headers.get("content-length", "")
    is_larger = declared.isdecimal() and len(declared) < 20 and int(declared) > limit
    body = b"" if is_larger and is_success else await _read(response.stream, limit + 1)
    if is_success and (is_larger or len(body) > limit):
        raise ReplyRefusedError("too_large", f"the reply is larger than max_response_bytes={max_bytes}")
    return body[:limit]


async def _read(stream: AsyncIterable[bytes], num_bytes: int) -> bytes:
    """Up to ``num_bytes`` and a part more. Closing a stream that is not at its end closes its connection."""
    parts, size = [], 0
    source = aiter(stream)
    try:
        async for part in source:
            parts.append(part)
            size += len(part)
            if size >= num_bytes:
                break
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()
    return parts[0] if len(parts) == 1 else b"".join(parts)
