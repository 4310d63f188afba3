"""One call of all ranks: an order to each, an outcome from each, and an eye on whether they live."""

from __future__ import annotations

import selectors
import time
from collections.abc import Sequence

from areal_x.engine.ranks.rank_host import Outcome
from areal_x.engine.ranks.rank_process import RankProcess

__all__ = ["Exchange"]

_OTHERS_SECONDS = 10.0
"""Once one rank has raised, the others raise the same at about the same time, or they wait for it in vain."""


class Exchange:
    """Sends each rank its frame and collects their outcomes, in whatever order they come.

    Args:
        frames: of each rank, see ``encode``.
        wake: a descriptor that becomes readable when the exchange is to end.
    """

    def __init__(self, ranks: Sequence[RankProcess], frames: Sequence[Sequence[memoryview]], wake: int) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.has_ended = False
        """A rank's process ended."""
        self.was_woken = False
        self._ranks = ranks
        self._unsent = [list(reversed(frame)) for frame in frames]
        self._wake = wake
        self._patience = float("inf")

    @property
    def silent(self) -> list[RankProcess]:
        """Ranks without an outcome."""
        return [rank for rank in self._ranks if rank.rank not in self.outcomes]

    def run(self, deadline: float) -> None:
        """Return when all have answered, one has ended, ``wake`` is readable, or time (``time.monotonic``) is up."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            for rank in self._ranks:
                selector.register(rank.sentinel, selectors.EVENT_READ)
                selector.register(rank.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, rank)
            while self.silent and not self.has_ended and not self.was_woken:
                limit = min(deadline, self._patience)
                events = selector.select(max(0.0, limit - time.monotonic()))
                if not events:
                    return
                for key, mask in events:
                    if isinstance(key.data, RankProcess):
                        self._move(selector, key.data, mask)
                    elif key.fd == self._wake:
                        self.was_woken = True
                    else:
                        self.has_ended = True

    def _move(self, selector: selectors.BaseSelector, rank: RankProcess, mask: int) -> None:
        """Send and receive what a socket takes and has."""
        try:
            if mask & selectors.EVENT_WRITE and self._send(rank):
                selector.modify(rank.socket, selectors.EVENT_READ, rank)
            if mask & selectors.EVENT_READ:
                for outcome in rank.reader.read():
                    self.outcomes[rank.rank] = outcome
                    if outcome.error is not None:
                        self._hurry()
        except (EOFError, ConnectionError):
            # Its process is about to end, which its sentinel says.
            selector.unregister(rank.socket)
            self._hurry()

    def _send(self, rank: RankProcess) -> bool:
        """Send as much as goes; whether all is sent."""
        pieces = self._unsent[rank.rank]
        while pieces:
            try:
                count = rank.socket.send(pieces[-1])
            except BlockingIOError:
                return False
            pieces[-1] = pieces[-1][count:]
            if not pieces[-1].nbytes:
                pieces.pop()
        return True

    def _hurry(self) -> None:
        self._patience = min(self._patience, time.monotonic() + _OTHERS_SECONDS)
