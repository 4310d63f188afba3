"""A forked child of a pool's owner must not hold its sockets: they would keep the helper alive after the owner."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["abandon_in_forked_children", "forget"]


class Abandonable(Protocol):
    """Something whose descriptors belong to the process that made it."""

    def abandon(self) -> None: ...


_owners: weakref.WeakSet[Abandonable] = weakref.WeakSet()


def abandon_in_forked_children(owner: Abandonable) -> None:
    """Call ``owner.abandon()`` in every child that this process forks from now on."""
    _owners.add(owner)


def forget(owner: Abandonable) -> None:
    """Undo ``abandon_in_forked_children``."""
    _owners.discard(owner)


def _abandon_all() -> None:
    for owner in list(_owners):
        owner.abandon()
    _owners.clear()


os.register_at_fork(after_in_child=_abandon_all)
