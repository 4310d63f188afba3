"""A model with one linear head of one number for packed training: a reward model, or a critic.

It is made from a causal language model (its body, with a new head) or from a model that has such a head already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from areal_x.api.config import ModelConfig
from areal_x.api.errors import ConfigError
from areal_x.api.records import TrainBatch
from areal_x.api.train_config import TrainConfig
from areal_x.engine.cpu_linear import use_onednn_linear
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.attention import PACKED_ATTENTION
from areal_x.engine.train.attention_plan import SDPA
from areal_x.engine.train.fused_norm import use_fused_norms
from areal_x.engine.train.layer_options import apply_layer_options
from areal_x.engine.train.load_rows import load_into, materialise
from areal_x.engine.train.packed_policy import packed_hidden_states
from areal_x.engine.train.packing import MicroBatch, plan_micro_batches
from areal_x.engine.train.policy import embedding_rows
from areal_x.engine.train.sharding import (
    computes_in_bfloat16,
    decoder_layers,
    free_gathered,
    local_rows,
    needs_sharding,
    shard_module,
)
from areal_x.engine.train.varlen import choose_kernel

__all__ = ["Head", "PackedScores", "body_of", "check_score_model", "load_scores", "score_head"]

Head = Literal["none", "sequence", "token"]
"""Which head a checkpoint has; ``none``: it is a causal language model."""
_CLASSES: dict[Head, Any] = {
    "none": AutoModelForSequenceClassification,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}

TOLERANCE, NARROW_TOLERANCE = 1e-3, 5e-2
"""Largest difference of scores between packed and alone, as a part of the largest score, in float32 and bfloat16."""


class PackedScores(torch.nn.Module):
    """A scoring model whose forward takes a packed micro-batch. Its own parameters are whole inside its forward.

    Args:
        kernel: of attention, for which micro-batches must be planned.
    """

    METHODS = ("own_scores",)
    """What may be called beside ``forward`` where weights are sharded."""

    def __init__(self, model: PreTrainedModel, kernel: str = SDPA) -> None:
        super().__init__()
        self.model = model
        self.kernel = kernel

    def forward(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Scores [M], float32 or wider, at the micro-batch's rows."""
        return self._scores(packed_hidden_states(self.model, micro_batch).index_select(0, micro_batch.rows))

    def own_scores(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Scores [P] of one sequence [P] by the model's own forward pass; for checks."""
        return self._scores(self.model.base_model(input_ids=input_ids[None], use_cache=False).last_hidden_state[0])

    def _scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head in float32 at least: a score near 8 has steps of 0.06 in bfloat16, a margin needs finer ones."""
        head = score_head(self.model)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        bias = None if head.bias is None else head.bias.to(wide)
        scores = torch.nn.functional.linear(hidden.to(wide), head.weight.to(wide), bias)
        return scores.squeeze(-1).clone()  # Sharding hangs its hooks on what a forward returns, and warns of views.


def load_scores(
    path: Path | str,
    config: ModelConfig,
    train: TrainConfig,
    device: torch.device,
    ranks: RankContext,
    *,
    heads: tuple[Head, ...] = ("none", "sequence"),
    pad_token_id: int | None = None,
    num_tokens: int = 0,
    seed: int | None = None,
    kernel: str | None = SDPA,
) -> PackedScores:
    """A float32 model with packed attention, in evaluation mode (no dropout: what is compared is judged by one model).

    A causal language model keeps its body and gets a new head. With several ranks, each reads only its own rows.

    Args:
        path: a model with a head, or a causal language model; a directory or a hub name.
        heads: which may be given.
        pad_token_id: id that transformers looks for to find the last token; never the end of a conversation.
        num_tokens: ids that the tokenizer knows; the embedding grows where it has fewer rows.
        seed: of a new head, normal of deviation ``1 / sqrt(hidden + 1)``, so that scores begin near 0 with a spread of
            about 1 (N. Stiennon et al., https://arxiv.org/abs/2009.01325, appendix B). None: it begins as zeros.
        kernel: of attention; None: the fastest one.

    Raises:
        ConfigError: the model cannot be loaded, has another head, or cannot be trained packed.
    """
    by_rows = ranks.num_ranks > 1
    model, head = _read_model(path, config, empty=by_rows, heads=heads)
    if num_tokens > embedding_rows(model):
        if by_rows:
            raise ConfigError(
                f"model.path: {path} has {embedding_rows(model)} embeddings for {num_tokens} tokens, as the tokenizer "
                "has no padding token that no conversation ends with; give it one, or train with train.num_ranks=1"
            )
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    if pad_token_id is not None:
        model.config.pad_token_id = pad_token_id
    model.eval()
    narrow = computes_in_bfloat16(train, device)
    packed = PackedScores(
        model, kernel or choose_kernel(model.config, device, torch.bfloat16 if narrow else torch.float32)
    )
    needs_layers = needs_sharding(ranks, train, device) or train.gradient_checkpointing or train.compile
    layers = decoder_layers(model) if needs_layers else []
    if not by_rows and not train.cpu_offload:
        packed.to(device)
    shard_module(packed, layers, ranks, train, device, methods=PackedScores.METHODS)
    if by_rows:
        materialise(packed, model, torch.device("cpu") if train.cpu_offload else device, device)
        load_into(body_of(model) if head == "none" else model, path)
    if head == "none":
        _new_head(model, seed or 0)
    _check_packing(packed, str(path), train, device)
    if head == "none" and seed is None:
        for parameter in score_head(model).parameters():
            local_rows(parameter)[0].zero_()
    apply_layer_options(model, layers, train, device)
    return packed


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model below the head."""
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    return body


def score_head(model: PreTrainedModel) -> torch.nn.Linear:
    """The layer that makes scores."""
    head = model.score
    assert isinstance(head, torch.nn.Linear)
    return head


def check_score_model(path: Path | str, *, trust_remote_code: bool, heads: tuple[Head, ...]) -> PreTrainedConfig:
    """What a model's configuration says, checked without a look at its weights.

    Raises:
        ConfigError: it is missing, has another head, or is no decoder.
    """
    try:
        known = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        head = _head_of(known, path, heads)
        model = _empty(known, head, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model.path: {path} does not load as a reward model: {_first_line(error)}") from error
    _check_head(model, path)
    return known


def _read_model(
    path: Path | str, config: ModelConfig, *, empty: bool, heads: tuple[Head, ...]
) -> tuple[PreTrainedModel, Head]:
    """The whole model in the host's memory, or an ``empty`` one on the meta device; and the head that it had."""
    info: dict[str, set[str]] = {"missing_keys": set()}
    trust = config.trust_remote_code
    try:
        known = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        head = _head_of(known, path, heads)
        if empty:
            model = _empty(known, head, trust_remote_code=trust)
        else:
            with _quiet():
                model, info = _CLASSES[head].from_pretrained(
                    path,
                    num_labels=1,
                    output_loading_info=True,
                    dtype=torch.float32,
                    trust_remote_code=trust,
                    attn_implementation="eager",
                )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model.path: {path} does not load as a reward model: {_first_line(error)}") from error
    _check_head(model, path)
    missing = set(info["missing_keys"]) - ({"score.weight", "score.bias"} if head == "none" else set())
    if missing:
        raise ConfigError(f"model.path: {path} lacks weights, such as {min(missing)}; it is another kind of model")
    return model, head


def _empty(known: PreTrainedConfig, head: Head, *, trust_remote_code: bool) -> PreTrainedModel:
    known.num_labels = 1
    with torch.device("meta"):
        model: PreTrainedModel = _CLASSES[head].from_config(
            known, dtype=torch.float32, trust_remote_code=trust_remote_code, attn_implementation="eager"
        )
    return model


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _check_head(model: PreTrainedModel, path: Path | str) -> None:
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise ConfigError(
            f"model.path: {path} ({model.config.model_type}) has no linear head named score; give a causal language "
            "model, or a reward model made from one"
        )


def _head_of(config: PreTrainedConfig, path: Path | str, heads: tuple[Head, ...]) -> Head:
    """Which head a checkpoint has.

    Raises:
        ConfigError: it has a head for something else.
    """
    architecture = str((config.architectures or ["ForCausalLM"])[0])
    endings: dict[Head, str] = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}
    for head, ending in endings.items():
        if head in heads and architecture.endswith(ending):
            if config.num_labels != 1:
                raise ConfigError(
                    f"model.path: {path} tells {config.num_labels} classes apart; a model of one score has one label"
                )
            return head
    if not architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        kinds = "token or sequence" if "token" in heads else "sequence"
        raise ConfigError(
            f"model.path: {path} is a {architecture}; give a causal language model or a {kinds} classification model "
            "of one label"
        )
    return "none"


@torch.no_grad()
def _new_head(model: PreTrainedModel, seed: int) -> None:
    """The same on all ranks, of which each keeps its own rows."""
    head = score_head(model)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(head.weight.shape, generator=generator) / (head.in_features + 1) ** 0.5
    rows, first = local_rows(head.weight)
    rows.copy_(values[first : first + len(rows)])
    if head.bias is not None:
        local_rows(head.bias)[0].zero_()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of weights that a new head does not find, which is meant."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@torch.no_grad()
def _check_packing(packed: PackedScores, path: str, train: TrainConfig, device: torch.device) -> None:
    """Compare packed scores with the model's own; switches to packed attention and to faster layers on a CPU."""
    model = packed.model
    vocabulary = embedding_rows(model)
    sequences = [np.array(ids, dtype=np.int32) % vocabulary for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 6], [7, 8], [9, 1])]
    spans = [torch.from_numpy(ids.astype(np.int64)).to(device) for ids in sequences]
    expected = torch.cat([packed.own_scores(span)[:-1] for span in spans])
    model.set_attn_implementation(PACKED_ATTENTION)
    narrow = computes_in_bfloat16(train, device)
    if not narrow and not train.compile:
        use_onednn_linear(model)
        use_fused_norms(model)
    lengths = np.array([len(ids) for ids in sequences], dtype=np.int32)
    ids = np.concatenate(sequences)
    wanted = np.ones(len(ids), dtype=np.bool_)
    wanted[np.cumsum(lengths) - lengths] = False
    zeros = np.zeros(len(ids), dtype=np.float32)
    batch = TrainBatch(ids, wanted, zeros, zeros, lengths, np.array([0, 0, 1, 2], dtype=np.int64))
    (micro_batch,) = plan_micro_batches(batch, wanted, len(ids), device=device, kernel=packed.kernel)
    try:
        scores = packed(micro_batch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model.path: {path} cannot be trained packed: {error}") from error
    finally:
        free_gathered(packed)
    difference = ((scores - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()
    if not difference <= (NARROW_TOLERANCE if narrow else TOLERANCE):
        raise ConfigError(
            f"model.path: {path} ({model.config.model_type}) gives other scores packed than alone (relative difference "
            f"{difference:.1g}); its architecture is not supported"
        )
