"""The groups that are complete and wait for the trainer."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import NamedTuple

from areal_x.api.errors import DataError
from areal_x.api.records import TrajectoryGroup
from areal_x.rollout.episode import Episode
from areal_x.rollout.groups import PendingGroup

__all__ = ["ReadyGroup", "ReadyGroups"]


class ReadyGroup(NamedTuple):
    """A complete group and its episodes that have no end yet. Ordered by ``group_id``, which is unique."""

    group_id: int
    group: TrajectoryGroup
    kept: list[Episode]
    pending: PendingGroup


class ReadyGroups:
    """A store ordered by age: the group admitted first is taken first. One consumer.

    ``holes`` are the ids of rejected groups that no other group is drawn for: they are waited for and taken like
    groups, at their place in the order, but nothing is handed over for them.

    Args:
        nothing_comes: tells whether no further group will ever be put.
    """

    def __init__(self, nothing_comes: Callable[[], bool]) -> None:
        self._nothing_comes = nothing_comes
        self._heap: list[ReadyGroup] = []
        self.holes: list[int] = []
        self._waiter: asyncio.Future[None] | None = None
        self.num_wanted = 0
        """Groups that the consumer waits for; 0 when it does not wait."""

    def __len__(self) -> int:
        """Places that can be taken: groups and holes."""
        return len(self._heap) + len(self.holes)

    @property
    def num_episodes(self) -> int:
        """Episodes without an end, of all groups."""
        return sum(len(ready.kept) for ready in self._heap)

    @property
    def groups(self) -> list[ReadyGroup]:
        """All groups, in no order."""
        return list(self._heap)

    def put(self, ready: ReadyGroup) -> None:
        """Add a group; ``wake`` tells the consumer."""
        heapq.heappush(self._heap, ready)

    def put_hole(self, group_id: int) -> None:
        """Add the place of a rejected group."""
        heapq.heappush(self.holes, group_id)

    def take(self, num_places: int) -> tuple[list[ReadyGroup], int]:
        """Remove the oldest groups and holes, ``num_places`` at most; the groups, and the number of holes."""
        groups: list[ReadyGroup] = []
        num_holes = 0
        for _ in range(min(num_places, len(self))):
            if self.holes and (not self._heap or self.holes[0] < self._heap[0].group_id):
                heapq.heappop(self.holes)
                num_holes += 1
            else:
                groups.append(heapq.heappop(self._heap))
        return groups, num_holes

    def wake(self) -> None:
        """Look whether the consumer's wait is over."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._is_over():
            waiter.set_result(None)

    def too_few(self, num_wanted: int, num_items: int, first_failure: str | None) -> DataError:
        """The error of a consumer who wants more groups than the items could give."""
        return DataError(
            f"the data ended after {num_items} items: {len(self)} groups are ready and {num_wanted} are wanted; "
            "give more items or epochs, or a smaller train.batch_size"
            + (f"; the first failure was:\n{first_failure}" if first_failure else "")
        )

    async def wait(self, num_groups: int, on_wait: Callable[[], None]) -> None:
        """Return when ``num_groups`` are there, or nothing comes any more. ``on_wait`` is called if there is a wait."""
        if self._waiter is not None:
            raise RuntimeError("the executor serves one consumer; another one waits already")
        self.num_wanted = num_groups
        try:
            if not self._is_over():
                self._waiter = asyncio.get_running_loop().create_future()
                on_wait()
                await self._waiter
        finally:
            self._waiter = None
            self.num_wanted = 0

    def _is_over(self) -> bool:
        return len(self) >= self.num_wanted or self._nothing_comes()
