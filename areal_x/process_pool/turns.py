"""Whose call is next. A pure state machine: no tasks, no processes."""

from __future__ import annotations

from collections import deque

from areal_x.process_pool.calls import Call, PoolClient

__all__ = ["ClientTurns", "send_ahead_depth"]

_SHORT_SECONDS, _SHORT_DEPTH = 0.0005, 8
_MEDIUM_SECONDS, _MEDIUM_DEPTH = 0.005, 2


class ClientTurns:
    """The clients that have something to run now, served in turn; every step is O(1).

    A client is listed exactly while its queue is not empty and it runs fewer calls than its cap.
    """

    __slots__ = ("_ready",)

    def __init__(self) -> None:
        self._ready: deque[PoolClient] = deque()

    def __bool__(self) -> bool:
        return bool(self._ready)

    def add(self, call: Call) -> None:
        """Queue a new call behind its client's others."""
        client = call.client
        client.queue.append(call)
        if not client.listed and (client.cap is None or client.running < client.cap):
            client.listed = True
            self._ready.append(client)

    def take(self) -> Call | None:
        """The next call that somebody still waits for, charged to its client's share; None: nothing can run now."""
        ready = self._ready
        while ready:
            client = ready[0]
            queue = client.queue
            while queue:
                call = queue.popleft()
                if not call.future.done():
                    break
            else:
                ready.popleft()
                client.listed = False
                continue
            client.running += 1
            if not queue or (client.cap is not None and client.running >= client.cap):
                ready.popleft()
                client.listed = False
            elif len(ready) > 1:
                ready.rotate(-1)
            return call
        return None

    def put_back(self, call: Call) -> None:
        """Undo ``take``: the call is the first of its queue again, and its client the first in turn."""
        client = call.client
        client.running -= 1
        client.queue.appendleft(call)
        if not client.listed:
            client.listed = True
            self._ready.appendleft(client)
        elif self._ready[-1] is client:
            self._ready.rotate(1)

    def release(self, client: PoolClient) -> None:
        """One of the client's calls has ended."""
        client.running -= 1
        if client.queue and not client.listed:
            client.listed = True
            self._ready.append(client)

    def clear(self, running: list[Call]) -> list[Call]:
        """Forget everything; returns the calls that were queued. ``running`` are those that workers hold."""
        clients = {call.client for call in running} | set(self._ready)
        queued = [call for client in clients for call in client.queue]
        for client in clients:
            client.queue.clear()
            client.running = 0
            client.listed = False
        self._ready.clear()
        return queued


def send_ahead_depth(call: Call) -> int:
    """How many calls a worker may hold: one sent ahead hides the round trip, but waits behind the one that runs."""
    seconds = call.function.mean_seconds
    return _SHORT_DEPTH if seconds < _SHORT_SECONDS else _MEDIUM_DEPTH if seconds < _MEDIUM_SECONDS else 1
