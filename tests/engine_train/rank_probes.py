"""A policy on a rank that says what it holds and held in memory. Built as ``rank_probes:...``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from areal_x.api.records import TrainBatch
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.policy_files import save_policy
from areal_x.engine.train.rank_policy import RankPolicy

__all__ = ["LiveBytes", "ProbedPolicy", "measured_policy"]


class LiveBytes(TorchDispatchMode):
    """The most bytes of real tensors that any operation found alive among those that operations have met."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        num_known = len(self._storages)
        for leaf in tree_leaves((args, kwargs, result)):
            if type(leaf) in (torch.Tensor, torch.nn.Parameter) and leaf.device.type == "cpu":
                reference = StorageWeakRef(leaf.untyped_storage())
                self._storages.setdefault(reference.cdata, reference)
        if len(self._storages) > num_known:
            self._measure()
        return result

    def _measure(self) -> None:
        total = 0
        for key, reference in tuple(self._storages.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self._storages[key]
            else:
                total += storage.nbytes()
        self.peak = max(self.peak, total)


class ProbedPolicy(RankPolicy):
    peak_bytes = 0

    def row_bytes(self) -> int:
        """What this rank holds of the weights."""
        return sum(weight.rows.untyped_storage().nbytes() for weight in self.local_weights())

    def peak_of_loading(self) -> int:
        return self.peak_bytes

    def peak_of_training(self, batch: TrainBatch) -> int:
        with LiveBytes() as live:
            self.train_step(batch)
        return live.peak

    def save_small_files(self, path: Path, max_bytes: int) -> None:
        save_policy(self.model, path, self._ranks, max_shard_bytes=max_bytes)


def measured_policy(ranks: RankContext, **kwargs: Any) -> ProbedPolicy:
    with LiveBytes() as live:
        policy = ProbedPolicy(ranks=ranks, **kwargs)
    policy.peak_bytes = live.peak
    return policy
