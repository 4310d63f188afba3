"""Chooses the server of a request: the least loaded, or the one that has the prefix of the request's session."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["Loaded", "Router"]

_MAX_SESSIONS = 2**16


class Loaded(Protocol):
    """What the router knows of a server."""

    @property
    def num_running(self) -> int:
        """Requests in flight."""
        ...

    @property
    def num_slots(self) -> int:
        """Requests that it decodes at once."""
        ...


AnyServer = TypeVar("AnyServer", bound=Loaded)


class Router:
    """Remembers which server each session went to last; the sessions used longest ago are forgotten first.

    Args:
        max_sessions: sessions to remember.
    """

    def __init__(self, max_sessions: int = _MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._homes: OrderedDict[str, int] = OrderedDict()

    def pick(self, servers: Sequence[AnyServer], session_id: str | None = None) -> AnyServer | None:
        """The server for a request among those that serve now; ``None`` if there is none.

        A session stays where its prefix is cached, unless another server is clearly less loaded: by more than a quarter
        of the slots, or by having a free slot where the session's server has none.
        """
        if not servers:
            return None
        least = min(servers, key=_load)
        if session_id is None:
            return least
        home = self._homes.get(session_id)
        chosen = next((server for server in servers if id(server) == home), least)
        if chosen is not least and _is_overloaded(chosen, least):
            chosen = least
        self._homes[session_id] = id(chosen)
        self._homes.move_to_end(session_id)
        if len(self._homes) > self._max_sessions:
            self._homes.popitem(last=False)
        return chosen

    def forget(self, server: Loaded) -> None:
        """Drop what is remembered of a server whose cache is gone."""
        for session_id in [key for key, home in self._homes.items() if home == id(server)]:
            del self._homes[session_id]

    def __len__(self) -> int:
        return len(self._homes)


def _load(server: Loaded) -> float:
    return server.num_running / server.num_slots


def _is_overloaded(home: Loaded, least: Loaded) -> bool:
    if home.num_running >= home.num_slots and least.num_running < least.num_slots:
        return True
    return home.num_running - least.num_running > max(1, home.num_slots // 4)
