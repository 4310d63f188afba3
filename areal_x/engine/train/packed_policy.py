"""The module that is trained, and sharded: a causal language model that gives log-probabilities of packed targets.

Its forward pass spans the output layer too, so that where weights are sharded, those that no decoder layer owns
(embedding, last norm, output layer) are whole while the chunked log-probabilities use them.

Axis letters: P packed rows, M targets, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from areal_x.engine.train.attention_plan import SDPA
from areal_x.engine.train.logprob import LogitsTransform, chunked_logprobs
from areal_x.engine.train.packing import MicroBatch

__all__ = ["PackedPolicy", "output_head", "packed_hidden_states"]


class PackedPolicy(torch.nn.Module):
    """Log-probabilities of a micro-batch's targets under ``model``.

    Args:
        model: a causal language model with packed attention.
        chunk_tokens: rows of the [tokens, vocabulary] matrix that exist at once.
        kernel: of attention, for which micro-batches must be planned.

    Raises:
        ValueError: the model's configuration changes its logits in a way that is not known.
    """

    METHODS = ("own_logits", "packed_logits")
    """What may be called beside ``forward`` where weights are sharded."""

    def __init__(self, model: PreTrainedModel, chunk_tokens: int = 1024, kernel: str = SDPA) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.kernel = kernel
        self.transform = LogitsTransform.of(model.config)

    def forward(
        self, micro_batch: MicroBatch, temperature: float, entropy_gradient: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [M], differentiable, and entropies [M], differentiable with ``entropy_gradient``."""
        weight, bias = output_head(self.model)
        return chunked_logprobs(
            packed_hidden_states(self.model, micro_batch).index_select(0, micro_batch.rows),
            weight,
            micro_batch.targets,
            bias=bias,
            transform=self.transform,
            temperature=temperature,
            chunk_tokens=self.chunk_tokens,
            entropy_gradient=entropy_gradient,
        )

    def packed_logits(self, micro_batch: MicroBatch) -> torch.Tensor:
        """The logits [M, V] that the log-probabilities are made of, all at once; for checks."""
        weight, bias = output_head(self.model)
        hidden = packed_hidden_states(self.model, micro_batch).index_select(0, micro_batch.rows)
        return self.transform.apply_(torch.nn.functional.linear(hidden, weight, bias))

    def own_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [P, V] of one sequence [P] by the model's own forward pass; for checks."""
        logits: torch.Tensor = self.model(input_ids=input_ids[None], use_cache=False).logits[0]
        return logits


def output_head(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [V, H] and bias [V] of the layer that makes the logits."""
    head = model.get_output_embeddings()
    weight = head.weight
    assert isinstance(weight, torch.Tensor)
    bias: torch.Tensor | None = getattr(head, "bias", None)
    return weight, bias


def packed_hidden_states(model: PreTrainedModel, micro_batch: MicroBatch) -> torch.Tensor:
    """Last hidden states of the packed rows, [P, H]."""
    outputs = model.base_model(
        input_ids=micro_batch.input_ids,
        position_ids=micro_batch.position_ids,
        use_cache=False,
        attention_plan=micro_batch.attention,
    )
    hidden: torch.Tensor = outputs.last_hidden_state.squeeze(0)
    return hidden
