"""What may go wrong with one request, by its cause, and whether it is tried again."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Fault", "backoff_seconds", "connection_fault", "retry_after_seconds", "status_fault_kind"]

_LONGEST_BACKOFF_SECONDS = 30.0
_RETRIED = frozenset(
    {"timeout", "dns", "connect", "reset", "truncated", "http_408", "http_409", "http_429", "http_5xx"}
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One request gave no reply."""

    kind: str
    """One of those in ``_RETRIED``, ``tls``, ``redirect``, ``quota``, ``too_large``, ``compressed`` or ``http_...``."""
    text: str
    """What happened, without secrets."""
    retry_after: float | None = None
    """Seconds that the server asked to wait."""

    @property
    def is_retried(self) -> bool:
        """Whether it may pass: the same request can succeed later."""
        return self.kind in _RETRIED


def status_fault_kind(status: int, code: str | None) -> str:
    """The kind of an HTTP status that is no success; ``code`` is the error code in the server's JSON."""
    if 300 <= status < 400:
        return "redirect"
    if status == 429 and code == "insufficient_quota":
        return "quota"
    return "http_5xx" if status >= 500 else f"http_{status}"


def connection_fault(error: BaseException) -> Fault:
    """The fault behind an exception of the client library.

    Its own class does not tell: a reset arrives as a connection time-out. The chain of causes does.
    """
    import aiohttp

    kinds: list[tuple[type[BaseException] | tuple[type[BaseException], ...], str]] = [
        (aiohttp.ClientConnectorDNSError, "dns"),
        ((aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError), "tls"),
        ((aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError), "connect"),
        (aiohttp.ClientPayloadError, "truncated"),
        ((aiohttp.ServerTimeoutError, TimeoutError), "timeout"),
        ((aiohttp.ClientConnectionError, ConnectionError), "reset"),
        (ValueError, "truncated"),
    ]
    chain = _chain(error)
    for classes, kind in kinds:
        for cause in chain:
            if isinstance(cause, classes):
                return Fault(kind, str(cause) or type(cause).__name__)
    return Fault("reset", f"{type(error).__name__}: {error}")


def _chain(error: BaseException | None) -> list[BaseException]:
    """The exception and its causes."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def retry_after_seconds(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that ``retry-after-ms`` or ``Retry-After`` (a number or a date, RFC 9110, 10.2.3) asks for.

    Args:
        headers: with small or any letters, as the mapping looks them up.
        now: seconds since the epoch; None: the system's clock.

    Returns:
        0 or more; None where nothing readable is asked for.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def backoff_seconds(num_faults: int, first: float, retry_after: float | None, chance: float | None = None) -> float:
    """The pause after the ``num_faults``-th fault of a call.

    ``first`` seconds, doubled with each fault up to 30 s, of which a random half is taken off, so that calls that
    failed together do not come back together. What the server asks for is never undercut.

    Args:
        chance: 0 to 1; None: random.
    """
    chance = random.random() if chance is None else chance
    if retry_after is not None:
        return retry_after + chance * min(first, 0.1 * retry_after + 0.01)
    # The exponent is capped, since 2.0**1024 overflows.
    return min(first * 2.0 ** min(num_faults - 1, 30), _LONGEST_BACKOFF_SECONDS) * (1.0 - 0.5 * chance)
