"""A policy on a rank whose own rows can be read, for tests. Built as ``rank_rows:RowsPolicy``."""

from __future__ import annotations

import numpy as np

from areal_x.engine.train.rank_policy import RankPolicy

__all__ = ["RowsPolicy"]


class RowsPolicy(RankPolicy):
    """Gives what this rank publishes."""

    def rows(self) -> list[tuple[str, int, np.ndarray]]:
        return [(weight.name, weight.first_row, weight.rows.numpy().copy()) for weight in self.local_weights()]
