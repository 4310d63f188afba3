"""An endless, shuffled, resumable walk over a data set."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from areal_x.api.errors import DataError

__all__ = ["DataStream", "Place"]

Row = dict[str, Any]
_KEPT_ORDERS = 4
_ITEMS_COMPARED = 64


class Place(NamedTuple):
    """Where a draw stands: in which epoch, from 0, and which item of the data set it is."""

    epoch: int
    item: int


class DataStream(Iterator[tuple[int, Row]]):
    """Yields ``(item index, item)`` for ever. Each epoch holds every item once, in an order of its own.

    The order of an epoch follows from the seed and the epoch's number alone, so the state is two small numbers.
    """

    def __init__(self, items: Sequence[Row], *, seed: int = 0, shuffle: bool = True) -> None:
        if not items:
            raise DataError("the data set holds no items")
        self._items = items
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0
        self._cursor = 0
        self._order = self._order_of(0)
        self._orders = {0: self._order}

    def __next__(self) -> tuple[int, Row]:
        if self._cursor == len(self._items):
            self._epoch += 1
            self._cursor = 0
            self._order = self._order_of(self._epoch)
        index = int(self._order[self._cursor])
        self._cursor += 1
        return index, self._items[index]

    @property
    def epoch(self) -> int:
        """Number of the epoch that the last item belongs to, from 0."""
        return self._epoch

    @property
    def num_drawn(self) -> int:
        """Items drawn since the beginning of the first epoch."""
        return self._epoch * len(self._items) + self._cursor

    def place(self, draw: int) -> Place:
        """Epoch and item of draw number ``draw``, from 0, made already or not. Groups are numbered by their draws, so
        this is where the group of this id comes from."""
        epoch, cursor = divmod(draw, len(self._items))
        if epoch not in self._orders:
            # Groups in flight lie in two epochs, or a few of a small data set.
            if len(self._orders) >= _KEPT_ORDERS:
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = self._order_of(epoch)
        return Place(epoch, int(self._orders[epoch][cursor]))

    def item_at(self, draw: int) -> Row:
        """The item of draw number ``draw``."""
        return self._items[self.place(draw).item]

    def _order_of(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if not self._shuffle:
            return np.arange(len(self._items), dtype=np.int64)
        # RandomState is frozen by numpy's compatibility promise (Generator is not), so a run resumed under another
        # numpy goes on in the same order.
        bits = np.random.MT19937(np.random.SeedSequence([self._seed, epoch]))
        return np.random.RandomState(bits).permutation(len(self._items)).astype(np.int64, copy=False)

    def _checksum(self) -> int:
        """Of the texts of some items, to tell one data set from another."""
        step = max(1, len(self._items) // _ITEMS_COMPARED)
        checksum = 0
        for index in range(0, len(self._items), step):
            texts = (value for value in self._items[index].values() if isinstance(value, str))
            checksum = zlib.crc32("\0".join(texts).encode(errors="backslashreplace"), checksum)
        return checksum

    def state_dict(self) -> dict[str, int | bool]:
        """Where the walk stands, as plain values for JSON."""
        return {
            "epoch": self._epoch,
            "cursor": self._cursor,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "num_items": len(self._items),
            "checksum": self._checksum(),
        }

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Go on from where ``state`` was taken.

        Raises:
            DataError: the state belongs to a data set of another size, another seed or another order.
        """
        for key, here in self.state_dict().items():
            if key not in state:
                raise DataError(f"the saved state of the data stream lacks {key!r}")
            if key not in ("epoch", "cursor") and state[key] != here:
                raise DataError(
                    f"the saved data stream has {key}={state[key]}, this run has {here}; "
                    "resume with the same data and seed"
                )
        epoch, cursor = int(state["epoch"]), int(state["cursor"])
        if epoch < 0 or not 0 <= cursor <= len(self._items):
            raise DataError(f"the saved data stream is broken: epoch={epoch}, cursor={cursor}")
        self._epoch = epoch
        self._cursor = cursor
        self._order = self._order_of(epoch)
