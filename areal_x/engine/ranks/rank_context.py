"""What one rank knows of the others.

All ranks run the same program on the same calls in the same order. With one rank nothing is initialised and nothing is
sent: every function here gives back what it got.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ONE_RANK", "RankContext"]


@dataclass(frozen=True)
class RankContext:
    """This rank's place. Ranks of one sequence-parallel group are neighbours: they share each micro-batch.

    ``data_rank`` and ``num_data_ranks`` count these groups: each takes other sequences of a batch.
    """

    rank: int = 0
    num_ranks: int = 1
    sequence_parallel: int = 1
    mesh: DeviceMesh | None = None
    """1-D, over all ranks, on the device that they train on; ``None`` with one rank."""
    sequence_mesh: DeviceMesh | None = None
    """1-D, over this rank's sequence-parallel group; ``None`` without sequence parallelism."""

    @property
    def data_rank(self) -> int:
        """Number of this rank's sequence-parallel group."""
        return self.rank // self.sequence_parallel

    @property
    def num_data_ranks(self) -> int:
        """Number of such groups."""
        return self.num_ranks // self.sequence_parallel

    @property
    def sequence_rank(self) -> int:
        """Place within the group."""
        return self.rank % self.sequence_parallel

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, of a tensor on the training device; the same on each."""
        return self._reduced(values, "sum", self.mesh)

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Maximum over all ranks, element by element."""
        return self._reduced(values, "max", self.mesh)

    def sum_of_sequence(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over this rank's sequence-parallel group."""
        return self._reduced(values, "sum", self.sequence_mesh)

    @staticmethod
    def _reduced(values: torch.Tensor, operation: str, mesh: DeviceMesh | None) -> torch.Tensor:
        if mesh is None:
            return values
        import torch.distributed as dist

        result = values.clone()
        dist.all_reduce(result, dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX, mesh.get_group())
        return result


ONE_RANK = RankContext()
"""A process that trains alone."""
