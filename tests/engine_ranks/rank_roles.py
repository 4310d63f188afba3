"""Roles for ranks that are tested: what they do is known, and some of it is bad."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.errors import ConfigError
from areal_x.engine.ranks.rank_context import RankContext

__all__ = ["Role", "failing_factory"]


class UnpicklableError(Exception):
    """Its constructor takes more than pickle gives back."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Role:
    """Built as ``rank_roles:Role``."""

    def __init__(self, ranks: RankContext, factor: int = 1) -> None:
        self.ranks = ranks
        self.factor = factor

    def place(self) -> tuple[int, int, int, int, int]:
        ranks = self.ranks
        return ranks.rank, ranks.num_ranks, ranks.data_rank, ranks.num_data_ranks, ranks.sequence_rank

    def add(self, first: int, second: int) -> int:
        return self.factor * (first + second)

    def sum_of_ranks(self) -> float:
        return float(self.ranks.sum(torch.tensor([float(self.ranks.rank + 1)])).item())

    def sequence_sum(self) -> float:
        import torch.distributed as dist

        assert self.ranks.sequence_mesh is not None
        value = torch.tensor([float(self.ranks.rank)])
        dist.all_reduce(value, group=self.ranks.sequence_mesh.get_group())
        return float(value.item())

    def double(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        values *= 2  # What arrives is this rank's own.
        return values

    def threads_and_limits(self) -> tuple[int, str, str]:
        return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def fail(self, message: str) -> None:
        raise ConfigError(message)

    def fail_unpicklable(self) -> None:
        raise UnpicklableError(1, 2)

    def give_unpicklable(self) -> Any:
        return lambda: None

    def fail_on(self, rank: int) -> None:
        if self.ranks.rank == rank:
            raise ValueError(f"rank {rank} has had enough")
        self.sum_of_ranks()

    def fail_quietly_on(self, rank: int) -> None:
        if self.ranks.rank == rank:
            raise ValueError(f"rank {rank} has had enough")

    def kill_on(self, rank: int) -> None:
        if self.ranks.rank == rank:
            print("the last line before the end", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        self.sum_of_ranks()

    def leave_on(self, rank: int) -> None:
        if self.ranks.rank == rank:
            os._exit(7)
        self.sum_of_ranks()

    def sleep_on(self, rank: int, seconds: float) -> None:
        if self.ranks.rank == rank:
            time.sleep(seconds)
        self.sum_of_ranks()

    def start_child(self) -> int:
        """Leave a process behind that would outlive this one."""
        import subprocess

        return subprocess.Popen(["sleep", "300"]).pid


def failing_factory(ranks: RankContext, rank: int | None) -> Role:
    """Fails on one rank, or with ``None`` on all."""
    if rank is None or ranks.rank == rank:
        raise ConfigError("model.path=nowhere: no such folder")
    return Role(ranks)
