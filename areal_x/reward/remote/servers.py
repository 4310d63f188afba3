"""Several servers for one reward: which is asked next, and which is left alone for a while. Pure; no clock, no network.

Consumes: outcomes of attempts. Produces: the server for the next one. A server that fails is taken out for a cool-down;
after it, one call at a time tries it again, and a success brings it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from areal_x.reward.remote.urls import Target

__all__ = ["Attempt", "Server", "ServerSet"]

_FAILURES_IN_A_ROW = 3
"""So many take a server out. One sample that a server cannot bear must not."""
_LONGEST_COOL_DOWN = 16
"""Times the first cool-down."""


@dataclass(slots=True, eq=False)
class Server:
    """One server, as the calls have seen it."""

    target: Target
    in_flight: int = 0
    attempts: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    out_until: float | None = None
    """None: in service."""
    failed_probes: int = 0
    is_probed: bool = False
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request to one server, from ``choose`` to ``release``."""

    server: Server
    is_probe: bool
    """The server is out of service, and this attempt finds out whether it still is."""


class ServerSet:
    """The servers of one reward.

    Args:
        targets: their URLs.
        cooldown_seconds: how long a server that failed is left alone; doubles with each failed probe, up to 16 times.
    """

    def __init__(self, targets: Sequence[Target], cooldown_seconds: float) -> None:
        self.servers = [Server(target) for target in targets]
        self._cooldown_seconds = cooldown_seconds

    def choose(self, now: float, not_before: Mapping[Server, float]) -> Attempt | None:
        """Take the server with the least in flight of those that may be asked now, None if there is none.

        Args:
            now: seconds of a monotonic clock, as all times here.
            not_before: servers that this call has to leave alone until then (back-off).
        """
        ready = [s for s in self.servers if self._ready_at(s) <= now and not_before.get(s, now) <= now]
        server = min(ready, key=lambda s: (s.in_flight, s.attempts), default=None)
        if server is None:
            return None
        server.in_flight += 1
        server.attempts += 1
        server.is_probed = server.out_until is not None
        return Attempt(server, server.is_probed)

    def next_time(self, not_before: Mapping[Server, float]) -> float:
        """When a server may be asked; infinity while that depends on how the probes now under way end."""
        return min(max(self._ready_at(s), not_before.get(s, -math.inf)) for s in self.servers)

    def any_probed(self) -> bool:
        """Whether a probe is under way, whose end may bring a server back."""
        return any(server.is_probed for server in self.servers)

    def succeeded(self, attempt: Attempt) -> None:
        """The server answered: it is, or is back, in service."""
        server = attempt.server
        server.failures_in_a_row = server.failed_probes = 0
        server.out_until = None

    def failed(self, attempt: Attempt, error: str, now: float, *, at_once: bool) -> None:
        """The server failed; ``at_once``: it is not there at all, so one failure is enough to take it out."""
        server = attempt.server
        server.failures += 1
        server.failures_in_a_row += 1
        server.last_error = error
        if attempt.is_probe:
            server.failed_probes += 1
            self._take_out(server, now)
        elif server.out_until is None and (at_once or server.failures_in_a_row >= _FAILURES_IN_A_ROW):
            self._take_out(server, now)

    def release(self, attempt: Attempt) -> None:
        """End an attempt, however it went."""
        attempt.server.in_flight -= 1
        if attempt.is_probe:
            attempt.server.is_probed = False

    def report(self, now: float) -> str:
        """Each server with its last error."""
        lines = []
        for server in self.servers:
            state = ""
            if server.out_until is not None:
                state = f" (out of service, asked again in {max(0.0, server.out_until - now):.1f} s)"
            lines.append(f"{server.target.origin}{state}: {server.last_error or 'no error so far'}")
        return "; ".join(lines)

    def _ready_at(self, server: Server) -> float:
        if server.is_probed:
            return math.inf
        return -math.inf if server.out_until is None else server.out_until

    def _take_out(self, server: Server, now: float) -> None:
        server.out_until = now + self._cooldown_seconds * min(2**server.failed_probes, _LONGEST_COOL_DOWN)
