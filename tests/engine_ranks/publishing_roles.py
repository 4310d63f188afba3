"""Sharded weights on a rank, for tests of publications. Built as ``publishing_roles:Publisher``."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import Shard, distribute_tensor

from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.sharding import local_rows
from areal_x.engine.transfer.weight_rows import LocalWeight
from areal_x.engine.transfer.write_rows import RowWriter, WriteReceipt
from areal_x.engine.transfer.write_target import WriteTarget, open_target

__all__ = ["Publisher", "named"]

Named = list[tuple[str, torch.Tensor]]
_WHOLE = ("model.rotary.weight", "model.scale")
"""Held by every rank."""


def named(version: int) -> Named:
    """Weights of a version: uneven rows, fewer rows than ranks, vectors, a scalar, blocks that two ranks share."""
    generator = torch.Generator().manual_seed(version)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return [
        ("model.embed_tokens.weight", random(1031, 40)),
        ("model.layers.0.self_attn.q_proj.weight", random(301, 140)),
        ("model.layers.0.self_attn.q_proj.bias", random(301)),
        ("model.layers.0.mlp.down_proj.weight", random(40, 257)),
        ("model.layers.0.input_layernorm.weight", random(7).bfloat16()),
        ("model.rotary.weight", random(5, 3)),
        ("model.single.weight", random(1, 9)),
        ("model.scale", random()),
    ]


class Publisher:
    """Writes its rows, and can be told to do it wrongly."""

    def __init__(self, ranks: RankContext) -> None:
        self.ranks = ranks
        self.fault: str | None = None
        self.set_version(0)

    def set_version(self, version: int, fault: str | None = None) -> None:
        """Hold the weights of ``version``; ``fault``: of the writes that follow."""
        self.fault = fault
        self.weights = []
        for name, tensor in named(version):
            if name not in _WHOLE:
                tensor = distribute_tensor(tensor, self.ranks.mesh, [Shard(0)])
            self.weights.append((name, tensor))

    def local_weights(self) -> Iterator[LocalWeight]:
        for number, (name, tensor) in enumerate(self.weights):
            if self.fault == "die" and self.ranks.rank == 1 and number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "forget" and self.ranks.rank == 1 and number == 3:
                continue
            rows, first_row = local_rows(tensor)
            yield LocalWeight(name, tuple(tensor.shape), tensor.dtype, first_row, rows)

    def write_rows(self, target: WriteTarget | None, max_bytes: float) -> WriteReceipt:
        if target is not None:
            if self.fault == f"rank {self.ranks.rank} is far" or self.fault == "all are far":
                # It would be able to write, were this its machine.
                target = dataclasses.replace(target, machine="another")
            self.writer = RowWriter(target, self.local_weights, self.ranks)
        receipt = self.writer.write(20_000 if self.fault and "far" in self.fault else max_bytes)
        if self.fault in ("once", "always") and self.ranks.rank == 1:
            assert target is not None
            self._spoil(target)
        return receipt

    def _spoil(self, target: WriteTarget) -> None:
        """Change the last byte of the matrix that rank 1 wrote last."""
        if self.fault == "once":
            self.fault = None
        with open_target(target) as sink:
            spec = next(spec for spec in target.order.specs if "down_proj.weight" in spec.name)
            last = sink.read(spec, 39 * 257, 40 * 257).view(spec.dtype).clone()
            last[-1] += 1
            sink.put(spec, 39, last[None])

    def attribute(self, name: str) -> Any:
        return getattr(self, name)
