"""Sequence parallelism: neighbouring ranks share each micro-batch, for contexts too long for one of them.

    each rank: rows [P / s] -> layers, on its own rows -> loss of the targets that its rows predict
    attention: [P / s, heads] -> all to all -> [P, heads / s] -> attend -> all to all -> [P / s, heads]

Everything but attention works row by row. For attention the ranks exchange rows for heads (DeepSpeed-Ulysses, Jacobs
et al. 2023), so each has all rows of some heads and uses the plan of the whole micro-batch. The exchange is its own
transpose, so its backward pass is the exchange of the gradients.

Axis letters: P packed rows of the micro-batch, s ranks that share it, D head size.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from areal_x.api.errors import ConfigError
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.packing import MicroBatch

__all__ = ["HeadExchange", "check_heads", "share_rows"]


def check_heads(model_config: Any, sequence_parallel: int) -> None:
    """Raise ``ConfigError`` when a model's attention heads cannot be divided among ``sequence_parallel`` ranks."""
    heads = int(model_config.get_text_config().num_attention_heads)
    if heads % sequence_parallel:
        fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise ConfigError(
            f"train.sequence_parallel: {sequence_parallel} does not divide the {heads} attention heads of this model; "
            f"use one of {fitting}"
        )


def share_rows(micro_batch: MicroBatch, ranks: RankContext) -> MicroBatch:
    """This rank's rows of a micro-batch, and the targets that they predict; without sequence parallelism, all.

    Every rank gets equally many rows; the last ones may be padding, which attends to nothing and is seen by nothing.
    """
    size = ranks.sequence_parallel
    if ranks.sequence_mesh is None:
        return micro_batch
    num_rows = micro_batch.num_rows
    share = -(-num_rows // size)
    start = ranks.sequence_rank * share
    mine = (micro_batch.rows >= start) & (micro_batch.rows < start + share)
    exchange = HeadExchange(ranks.sequence_mesh.get_group(), size, num_rows)
    missing = share * size - num_rows
    return MicroBatch(
        input_ids=pad(micro_batch.input_ids, (0, missing))[:, start : start + share].contiguous(),
        position_ids=pad(micro_batch.position_ids, (0, missing))[:, start : start + share].contiguous(),
        attention=dataclasses.replace(micro_batch.attention, exchange=exchange),
        rows=micro_batch.rows[mine] - start,
        targets=micro_batch.targets[mine],
        positions=micro_batch.positions[mine],
    )


@dataclass(frozen=True, slots=True)
class HeadExchange:
    """Turns some rows of all heads into all rows of some heads, and back. All ranks of the group call it alike."""

    group: dist.ProcessGroup
    size: int
    """Ranks of the group."""
    num_rows: int
    """P, without padding."""

    def to_heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[P / s, heads, D] each to [P, heads / s, D]. Heads of key and value are repeated where s does not divide
        them, so that each rank has those that its query heads look at."""
        repeats = math.lcm(key.shape[1], self.size) // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        return self._rows_for_heads(query), self._rows_for_heads(key), self._rows_for_heads(value)

    def to_rows(self, output: torch.Tensor) -> torch.Tensor:
        """[P, heads / s, D] to [P / s, heads, D]."""
        missing = -len(output) % self.size
        blocks = pad(output, (0, 0, 0, 0, 0, missing)).unflatten(0, (self.size, -1))
        received: torch.Tensor = _AllToAll.apply(blocks, self.group)
        return received.transpose(0, 1).flatten(1, 2)

    def _rows_for_heads(self, states: torch.Tensor) -> torch.Tensor:
        blocks = states.unflatten(1, (self.size, -1)).transpose(0, 1)
        received: torch.Tensor = _AllToAll.apply(blocks, self.group)
        return received.flatten(0, 1)[: self.num_rows]


class _AllToAll(torch.autograd.Function):
    """Block i of the first axis goes to rank i of the group; what rank i sends becomes block i."""

    @staticmethod
    def forward(ctx: Any, blocks: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _exchanged(blocks, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchanged(grad, ctx.group), None


def _exchanged(blocks: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    sent = blocks.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received
