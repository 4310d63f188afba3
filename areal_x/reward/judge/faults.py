"""What may go wrong with one request, by its cause, and whether it is tried again."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fault", "connection_fault", "status_fault_kind"]

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
