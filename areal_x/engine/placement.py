"""Where the processes of a run are started: its trainer's ranks and its inference servers.

The trainer asks a ``Placement`` and knows nothing of clusters. By default everything runs on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from areal_x.api.server_checks import trainer_gpus
from areal_x.api.train_config import TrainConfig

if TYPE_CHECKING:
    from areal_x.engine.ranks.rank_group import RankGroup
    from areal_x.engine.servers.server_host import ServerHost

__all__ = ["LOOPBACK", "LocalPlacement", "Placement", "has_gpu"]

LOOPBACK = "127.0.0.1"


class Placement(Protocol):
    """Starts ranks and servers somewhere. What it started ends with what it gave, and with this process."""

    def start_ranks(self, train: TrainConfig, model_device: str, log_dir: Path) -> RankGroup | None:
        """The ranks that train; ``None``: the run's own process does, alone.

        Args:
            train: how many, and their settings.
            model_device: ``model.device``.
            log_dir: what they print goes there.

        Raises:
            EngineDiedError: one ended, or did not join the others.
        """
        ...

    def server_hosts(self, count: int) -> Sequence[ServerHost] | None:
        """Where each of ``count`` inference servers is started; ``None``: all of them here."""
        ...

    @property
    def address(self) -> str:
        """Of this machine, as all servers reach it; loopback when all of them are started here."""
        ...


class LocalPlacement:
    """This machine: one rank is the run's own process, several are processes of their own."""

    def start_ranks(self, train: TrainConfig, model_device: str, log_dir: Path) -> RankGroup | None:
        """See ``Placement``."""
        if train.num_ranks == 1:
            return None
        from areal_x.engine.ranks.local_ranks import LocalRanks

        uses_gpus = has_gpu(model_device)
        return LocalRanks(
            train.num_ranks,
            device="cuda" if uses_gpus else "cpu",
            gpus=trainer_gpus(model_device, train.num_ranks) if uses_gpus else (),
            num_threads=train.num_threads,
            sequence_parallel=train.sequence_parallel,
            timeout_seconds=train.rank_timeout_seconds,
            log_dir=log_dir,
        )

    def server_hosts(self, count: int) -> Sequence[ServerHost] | None:
        """See ``Placement``."""
        return None

    @property
    def address(self) -> str:
        """See ``Placement``."""
        return LOOPBACK


def has_gpu(model_device: str) -> bool:
    """Whether ``model.device`` means a GPU on this machine."""
    import torch

    return model_device != "cpu" and torch.cuda.is_available()
