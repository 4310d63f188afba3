"""One rank's part of the policy, in terms that travel between processes: what ``RankedTrainEngine`` calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging

from areal_x.api.engine_api import PolicyFacts
from areal_x.api.records import FloatArray, TrainBatch
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.transfer.lora import AdapterFacts
from areal_x.engine.transfer.write_rows import RowWriter, WriteReceipt
from areal_x.engine.transfer.write_target import WriteTarget

__all__ = ["RankPolicy", "make_policy"]


class RankPolicy(FSDPEngine):
    """See ``FSDPEngine``. Every rank gets every call, in one order."""

    _gathering: Iterator[tuple[str, torch.Tensor]] = iter(())

    def get_facts(self) -> PolicyFacts:
        """``facts`` as a call."""
        return self.facts

    def get_adapter_facts(self) -> AdapterFacts:
        """``adapter_facts`` as a call."""
        return self.adapter_facts

    def first_ranks_logprobs(self, batch: TrainBatch) -> FloatArray | None:
        """``logprobs``, which all ranks have, from the first."""
        values = self.logprobs(batch)
        return values if self._is_first else None

    def first_ranks_reference_logprobs(self, batch: TrainBatch) -> FloatArray | None:
        """``reference_logprobs``, which all ranks have, from the first."""
        values = self.reference_logprobs(batch)
        return values if self._is_first else None

    def begin_checkpoint_of(self, version: int, path: Path) -> None:
        """``begin_checkpoint``; the driver counts versions."""
        self.version = version
        self.begin_checkpoint(path)

    def restored_version(self, path: Path) -> int:
        """``restore_checkpoint``, and the version of what was restored."""
        self.restore_checkpoint(path)
        return self.version

    def train_step_at(self, version: int, batch: TrainBatch) -> dict[str, float]:
        """``train_step``; the driver counts versions."""
        self.version = version
        return self.train_step(batch)

    def accumulate_at(self, version: int, part: TrainBatch) -> None:
        """``accumulate``; the driver counts versions."""
        self.version = version
        self.accumulate(part)

    def start_gathering(self, adapters: bool) -> None:
        """Begin with the first of ``named_weights``, or of ``named_adapters``."""
        self._gathering = self.named_adapters() if adapters else self.named_weights()

    def gather(self, max_bytes: int) -> list[tuple[str, npt.NDArray[Any]]]:
        """The next weights, whole, from the first rank; of the others none. Empty when there are no more.

        Args:
            max_bytes: of weights that one answer holds, but for one that alone has more.
        """
        gathered: list[tuple[str, npt.NDArray[Any]]] = []
        num_bytes = 0
        for name, weight in self._gathering:
            num_bytes += weight.nbytes
            if self._is_first:
                # A copy: a result may wait in the socket while the weights change.
                gathered.append((name, np.array(weight.detach().cpu().numpy())))
            if num_bytes >= max_bytes:
                break
        return gathered

    def write_rows(self, target: WriteTarget | None, max_bytes: float) -> WriteReceipt:
        """Copy this rank's rows to where engines read them: the first weights to ``target``, or, with ``None``, the
        next; see ``RowWriter``."""
        if target is not None:
            self._writer = RowWriter(target, self.local_weights, self._ranks)
        return self._writer.write(max_bytes)

    @property
    def _is_first(self) -> bool:
        return self._ranks.rank == 0


def make_policy(ranks: RankContext, **kwargs: Any) -> RankPolicy:
    """The role ``policy`` of a rank; arguments as of ``FSDPEngine``."""
    logging.disable_progress_bar()
    return RankPolicy(ranks=ranks, **kwargs)
