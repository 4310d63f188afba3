"""One timer for the deadlines of all episodes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from areal_x.rollout.episode import Episode

__all__ = ["EpisodeDeadlines"]


class EpisodeDeadlines:
    """Episodes all have the same time, so they come due in the order in which they started: a queue and one timer
    will do.

    Args:
        seconds: time of one episode.
        on_due: called with each episode that still runs when its time is over.
    """

    def __init__(self, seconds: float, on_due: Callable[[Episode], None]) -> None:
        self.seconds = seconds
        self._on_due = on_due
        self._queue: deque[Episode] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, episode: Episode, now: float) -> None:
        """Give an episode its time from ``now`` on; its ``task`` is None once it runs no longer."""
        episode.deadline = now + self.seconds
        self._queue.append(episode)
        if self._timer is None:
            self._arm()

    def stop(self) -> None:
        """Watch no more."""
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        delay = self._queue[0].deadline - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(max(delay, 0.0), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = time.monotonic()
        queue = self._queue
        while queue and (queue[0].task is None or queue[0].deadline <= now):
            episode = queue.popleft()
            if episode.task is not None and not episode.task.done():
                self._on_due(episode)
        if queue and self._timer is None:
            self._arm()
