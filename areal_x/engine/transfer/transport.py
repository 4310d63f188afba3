"""The contract of a way for weights: staged once, then loaded by any number of servers.

A publication goes like this (``engine/servers/publication.py``):

    stage(version)                      weights are copied out, checked, and may change again (``staging.py``)
    join_orders / join                  before anything pauses, if the set of servers changed
    pause → begin → load ‖ send → finish(version) → resume        for all servers at once

``load`` is what each server does when it is told ``load_order()``; ``send`` is the trainer's part of it, which only
collective ways (broadcasts) have.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from functools import cached_property
from typing import Any, ClassVar

from areal_x.engine.transfer.staging import Staging

__all__ = ["WeightTransport"]

Order = dict[str, Any]
"""What a server is told, as JSON: ``way`` and that way's own arguments."""


class WeightTransport(Staging):
    """One way in which staged weights reach servers. Methods block and are called on threads, never two at once."""

    way: ClassVar[str]

    @cached_property
    def lock(self) -> asyncio.Lock:
        """Held by whoever stages weights and by whoever has servers load them, so that neither changes under the
        other. Publications and servers that join again take it themselves."""
        return asyncio.Lock()

    def join_orders(self, num_servers: int) -> list[Order]:
        """What each server is told before its first load, and again when one came, went or failed. Empty: nothing."""
        return []

    def join(self) -> None:
        """The trainer's part of joining; runs while the servers carry out ``join_orders``.

        Raises:
            EngineError: a server did not come in time.
        """

    @abstractmethod
    def load_order(self) -> Order:
        """What each server is told in order to load the version staged last, which ``version`` names in it.

        What they load is that version or an error, even when another one is staged meanwhile.
        """

    def send(self) -> None:
        """The trainer's part of loading; runs while the servers carry out ``load_order``.

        Raises:
            EngineError: a server did not take its part in time.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what it holds. Safe to call twice."""
