"""A role for ranks on a cluster, built as ``cluster_roles:Role``; some of what it does is bad."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.errors import ConfigError
from areal_x.engine.ranks.rank_context import RankContext

__all__ = ["Role"]


class Role:
    def __init__(self, ranks: RankContext) -> None:
        self.ranks = ranks

    def sum_of_ranks(self) -> float:
        return float(self.ranks.sum(torch.tensor([float(self.ranks.rank + 1)])).item())

    def total(self, values: npt.NDArray[np.float32], factor: float) -> float:
        return float(values.sum()) * factor

    def fail(self, message: str) -> None:
        raise ConfigError(message)

    def fail_on(self, rank: int) -> None:
        if self.ranks.rank == rank:
            raise ValueError(f"rank {rank} has had enough")
        self.sum_of_ranks()

    def kill_on(self, rank: int) -> None:
        if self.ranks.rank == rank:
            print("the last line before the end", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        self.sum_of_ranks()

    def sleep_on(self, rank: int, seconds: float) -> None:
        if self.ranks.rank == rank:
            time.sleep(seconds)
        self.sum_of_ranks()
