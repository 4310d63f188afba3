"""One timer for the deadlines of all episodes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

from areal_x.rollout.episode import Episode

__all__ = ["EpisodeDeadlines"]


class EpisodeDeadlines:
    """Episodes all have the same time, so they come due in the order in which they started: a queue and one timer
    will do. Only episodes that run are in it: a finished one would stay, with all that it holds, until it came due.

    Args:
        seconds: time of one episode.
        on_due: called with each episode that still runs when its time is over.
    """

    def __init__(self, seconds: float, on_due: Callable[[Episode], None]) -> None:
        self.seconds = seconds
        self._on_due = on_due
        self._queue: dict[Episode, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, episode: Episode, now: float) -> None:
        """Give an episode its time from ``now`` on, until ``remove``."""
        episode.deadline = now + self.seconds
        self._queue[episode] = None
        if self._timer is None:
            self._arm()

    def remove(self, episode: Episode) -> None:
        """The episode runs no longer."""
        self._queue.pop(episode, None)

    def stop(self) -> None:
        """Watch no more."""
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        delay = next(iter(self._queue)).deadline - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(max(delay, 0.0), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = time.monotonic()
        due = list(itertools.takewhile(lambda episode: episode.deadline <= now, self._queue))
        for episode in due:
            self.remove(episode)
            if episode.task is not None and not episode.task.done():
                self._on_due(episode)
        if self._queue and self._timer is None:
            self._arm()
