"""The 82 M model of the benchmarks of servers, held by ranks: each has its rows of every weight.

Built as role ``policy`` of a group of ranks, ``rank_weights:ShardedWeights``.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.distributed.tensor import Shard, distribute_tensor

from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.sharding import local_rows
from areal_x.engine.transfer.weight_rows import LocalWeight
from areal_x.engine.transfer.write_rows import RowWriter, WriteReceipt
from areal_x.engine.transfer.write_target import WriteTarget


class ShardedWeights:
    """This rank's rows, which change a little with each version."""

    def __init__(self, ranks: RankContext, size: str) -> None:
        from serving import make_model

        self._ranks = ranks
        self._weights = {
            name: distribute_tensor(parameter.detach(), ranks.mesh, [Shard(0)])
            for name, parameter in make_model(size).named_parameters()
        }

    def change(self) -> None:
        """Other weights."""
        for weight in self._weights.values():
            weight.to_local().mul_(1.0 + 1e-3)

    def local_weights(self) -> Iterator[LocalWeight]:
        """See ``FSDPEngine.local_weights``."""
        for name, weight in self._weights.items():
            rows, first_row = local_rows(weight)
            yield LocalWeight(name, tuple(weight.shape), weight.dtype, first_row, rows)

    def write_rows(self, target: WriteTarget | None, max_bytes: float) -> WriteReceipt:
        """See ``RankPolicy.write_rows``."""
        if target is not None:
            self._writer = RowWriter(target, self.local_weights, self._ranks)
        return self._writer.write(max_bytes)
