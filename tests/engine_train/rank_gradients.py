"""What ranks are asked in tests of training: a policy whose gradients can be read. Built as ``rank_gradients:...``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from areal_x.api.records import TrainBatch
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.rank_policy import RankPolicy
from areal_x.engine.train.sequence_parallel import HeadExchange
from areal_x.engine.train.sharding import whole

__all__ = ["Exchange", "GradientPolicy"]


class GradientPolicy(RankPolicy):
    """A policy that gives its loss sum, its rows and its gradients, whole, without a step."""

    def gradients(self, batch: TrainBatch) -> tuple[float, int, dict[str, Any]]:
        self.discard()
        self.accumulate(batch)
        totals = self.updates.totals
        assert totals is not None
        loss = float(self._ranks.sum(totals.update_loss.clone()).item())
        found = {
            name: whole(parameter.grad).numpy().copy()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        self.discard()
        return loss, totals.num_computed_tokens, found


class Exchange:
    """Attention by the plain formula on some heads of all rows, between two exchanges; and its gradients."""

    def __init__(self, ranks: RankContext) -> None:
        self.ranks = ranks

    def attend(self, query: Any, key: Any, value: Any, upstream: Any) -> list[Any]:
        """All [P, heads, D], the whole on each rank; results are this rank's rows."""
        ranks = self.ranks
        assert ranks.sequence_mesh is not None
        size, num_rows = ranks.sequence_parallel, len(query)
        exchange = HeadExchange(ranks.sequence_mesh.get_group(), size, num_rows)
        share = -(-num_rows // size)
        padded = [
            np.pad(part, ((0, share * size - num_rows), (0, 0), (0, 0))) for part in (query, key, value, upstream)
        ]
        mine = slice(ranks.sequence_rank * share, (ranks.sequence_rank + 1) * share)
        *states, grad = [torch.from_numpy(part[mine].copy()) for part in padded]
        states = [part.requires_grad_() for part in states]
        output = exchange.to_rows(plain_attention(*exchange.to_heads(*states)))
        found = torch.autograd.grad(output, states, grad)
        return [part.detach().numpy() for part in (output, *found)]


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention by its formula, all [P, heads, D]."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("phd,qhd->hpq", query, key) * query.shape[2] ** -0.5
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return torch.einsum("hpq,qhd->phd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)
