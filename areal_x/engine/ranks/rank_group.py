"""The driver's hold on its ranks: build something on each, call it on all, hear of a death at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["RankGroup", "device_of_rank"]


def device_of_rank(device: str) -> str:
    """What a rank calls its device: it sees one GPU, whatever number that has in ``model.device``."""
    return device.partition(":")[0]


class RankGroup(ABC):
    """Ranks that are running. Calls block, come from one thread at a time, and reach all ranks in one order.

    On a rank, the answer of every call is made before the next one begins. Objects that a call takes and gives travel
    by pickle between the run and its own processes (Ray: on its channels).
    """

    @property
    @abstractmethod
    def num_ranks(self) -> int:
        """How many there are."""

    @property
    @abstractmethod
    def same_host(self) -> bool:
        """Whether all ranks run on the driver's machine, so that they can map its memory."""

    @abstractmethod
    def build(self, role: str, factory: str, kwargs: Mapping[str, Any]) -> None:
        """Make ``role`` on each rank: ``factory(ranks=RankContext, **kwargs)``, named ``package.module:function``.

        Raises:
            what the factory raised, and ``EngineDiedError``, as in ``call``.
        """

    @abstractmethod
    def call(self, role: str, method: str, *args: Any, per_rank: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Call a method of ``role`` on every rank with ``args``, or with each rank's own of ``per_rank``.

        Returns:
            The results in the order of ranks.

        Raises:
            what the method raised when it raised the same type on every rank (the lowest one's; the ranks stay
            usable). ``EngineDiedError``, with the rank's number, how it ended and its last lines, when a rank ended,
            raised while not all others did, or gave no answer in time; within 30 s, and all ranks are stopped then.
        """

    @abstractmethod
    def watch(self) -> None:
        """Block, in a thread of its own, until the ranks are closed: hears of a death while no call is under way.

        Raises:
            EngineDiedError: a rank ended.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop all ranks. Safe to call twice, and from another thread, which ends a call that is under way."""
