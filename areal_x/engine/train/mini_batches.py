"""Dealing the groups of a batch out to optimiser steps: a pure function, so that each rank finds the same ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from areal_x.engine.train.computed_tokens import Indices

__all__ = ["deal_mini_batches"]


def deal_mini_batches(
    group_ids_S: npt.NDArray[np.int64], number: int, order_of: tuple[int, ...] | None = None
) -> list[Indices]:
    """Sequences of each of ``number`` mini-batches, ascending; fewer where there are fewer groups, never none.

    Groups stay whole and are dealt out evenly: in the order in which they come, or in a random one.

    Args:
        order_of: what the random order is of, such as seed, step and epoch: the same numbers, the same order. None:
            the groups' own order.
    """
    _, first_G, group_S = np.unique(group_ids_S, return_index=True, return_inverse=True)
    num_groups = len(first_G)
    number = max(1, min(number, num_groups))
    places = np.arange(num_groups)
    if order_of is not None:
        places = np.random.default_rng(order_of).permutation(num_groups)
    place_G = np.empty(num_groups, dtype=np.int64)
    place_G[np.argsort(first_G)] = places
    mini_batch_S = place_G[group_S] * number // max(1, num_groups)
    return [np.flatnonzero(mini_batch_S == index) for index in range(number)]
