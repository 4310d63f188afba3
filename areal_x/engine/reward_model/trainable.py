"""Loading a sequence classification model of one label for packed training, whole or from a causal language model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from areal_x.api.config import ModelConfig
from areal_x.api.errors import ConfigError
from areal_x.api.train_config import TrainConfig
from areal_x.engine.cpu_linear import use_onednn_linear
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.reward_model.preference_batch import join_pairs, plan_pairs
from areal_x.engine.train.attention import PACKED_ATTENTION
from areal_x.engine.train.fused_norm import use_fused_norms
from areal_x.engine.train.layer_options import apply_layer_options
from areal_x.engine.train.load_rows import load_into, materialise
from areal_x.engine.train.packed_policy import packed_hidden_states
from areal_x.engine.train.packing import MicroBatch
from areal_x.engine.train.policy import embedding_rows
from areal_x.engine.train.sharding import (
    computes_in_bfloat16,
    decoder_layers,
    free_gathered,
    local_rows,
    needs_sharding,
    shard_module,
)

__all__ = ["PackedScores", "load_trainable"]

TOLERANCE, NARROW_TOLERANCE = 1e-3, 5e-2
"""Largest difference of scores between packed and alone, as a part of the largest score, in float32 and bfloat16."""


class PackedScores(torch.nn.Module):
    """A reward model whose forward takes a packed micro-batch. Its own parameters are whole inside its forward."""

    METHODS = ("own_score",)
    """What may be called beside ``forward`` where weights are sharded."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Scores [M], float32 or wider, at the micro-batch's rows."""
        return self._scores(packed_hidden_states(self.model, micro_batch).index_select(0, micro_batch.rows))

    def own_score(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Score [1] at the end of one sequence [P] by the model's own forward pass; for checks."""
        return self._scores(self.model.base_model(input_ids=input_ids[None], use_cache=False).last_hidden_state[0, -1:])

    def _scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head in float32 at least: a score near 8 has steps of 0.06 in bfloat16, a margin needs finer ones."""
        head = self.model.score
        assert isinstance(head, torch.nn.Linear)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        bias = None if head.bias is None else head.bias.to(wide)
        scores = torch.nn.functional.linear(hidden.to(wide), head.weight.to(wide), bias)
        return scores.squeeze(-1).clone()  # Sharding hangs its hooks on what a forward returns, and warns of views.


def load_trainable(
    path: Path | str,
    config: ModelConfig,
    train: TrainConfig,
    device: torch.device,
    ranks: RankContext,
    *,
    pad_token_id: int,
    num_tokens: int,
    seed: int,
) -> PackedScores:
    """A float32 model with packed attention, in evaluation mode (no dropout: both answers are judged by one model).

    A causal language model keeps its body and gets a new head: normal, of deviation ``1 / sqrt(hidden + 1)``, so that
    scores begin near 0 with a spread of about 1 (N. Stiennon et al., https://arxiv.org/abs/2009.01325, appendix B).
    With several ranks, each reads only its own rows.

    Args:
        path: a reward model to train on, or a causal language model; a directory or a hub name.
        pad_token_id: id that transformers looks for to find the last token; never the end of a conversation.
        num_tokens: ids that the tokenizer knows; the embedding grows where it has fewer rows.
        seed: of the new head.

    Raises:
        ConfigError: the model cannot be loaded, has another head, or cannot be trained packed.
    """
    by_rows = ranks.num_ranks > 1
    model, has_head = _read_model(path, config, empty=by_rows)
    if num_tokens > embedding_rows(model):
        if by_rows:
            raise ConfigError(
                f"model.path: {path} has {embedding_rows(model)} embeddings for {num_tokens} tokens, as the tokenizer "
                "has no padding token that no conversation ends with; give it one, or train with train.num_ranks=1"
            )
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    model.config.pad_token_id = pad_token_id
    model.eval()
    packed = PackedScores(model)
    needs_layers = needs_sharding(ranks, train, device) or train.gradient_checkpointing or train.compile
    layers = decoder_layers(model) if needs_layers else []
    if not by_rows and not train.cpu_offload:
        packed.to(device)
    shard_module(packed, layers, ranks, train, device, methods=PackedScores.METHODS)
    if by_rows:
        materialise(packed, model, torch.device("cpu") if train.cpu_offload else device, device)
        body = model.base_model
        assert isinstance(body, PreTrainedModel)
        load_into(model if has_head else body, path)
    if not has_head:
        _new_head(model, seed)
    _check_packing(packed, str(path), train, device)
    apply_layer_options(model, layers, train, device)
    return packed


def _read_model(path: Path | str, config: ModelConfig, empty: bool) -> tuple[PreTrainedModel, bool]:
    """The whole model in the host's memory, or an ``empty`` one on the meta device; and if it has its head already."""
    info: dict[str, set[str]] = {"missing_keys": set()}
    options = {
        "dtype": torch.float32,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": "eager",
    }
    try:
        known = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        has_head = _has_head(known, path)
        if empty:
            known.num_labels = 1
            with torch.device("meta"):
                model = AutoModelForSequenceClassification.from_config(known, **options)
        else:
            with _quiet():
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    path, num_labels=1, output_loading_info=True, **options
                )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.path: {path} does not load as a reward model: {reason}") from error
    assert isinstance(model, PreTrainedModel)
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise ConfigError(
            f"model.path: {path} ({model.config.model_type}) has no linear head named score; give a causal language "
            "model, or a reward model made from one"
        )
    missing = set(info["missing_keys"]) - (set() if has_head else {"score.weight", "score.bias"})
    if missing:
        raise ConfigError(f"model.path: {path} lacks weights, such as {min(missing)}; it is another kind of model")
    return model, has_head


def _has_head(config: PreTrainedConfig, path: Path | str) -> bool:
    """Whether the checkpoint has a head for one score already.

    Raises:
        ConfigError: it has a head for something else.
    """
    architecture = str((config.architectures or ["ForCausalLM"])[0])
    if architecture.endswith("ForSequenceClassification"):
        if config.num_labels != 1:
            raise ConfigError(
                f"model.path: {path} tells {config.num_labels} classes apart; a reward model has one label"
            )
        return True
    if not architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise ConfigError(
            f"model.path: {path} is a {architecture}; give a causal language model or a sequence classification model "
            "of one label"
        )
    return False


@torch.no_grad()
def _new_head(model: PreTrainedModel, seed: int) -> None:
    """The same on all ranks, of which each keeps its own rows."""
    head = model.score
    assert isinstance(head, torch.nn.Linear)
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
    sequences = [np.array(ids, dtype=np.int32) % vocabulary for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 6], [7, 8], [9])]
    expected = torch.cat([packed.own_score(torch.from_numpy(ids.astype(np.int64)).to(device)) for ids in sequences])
    model.set_attn_implementation(PACKED_ATTENTION)
    narrow = computes_in_bfloat16(train, device)
    if not narrow and not train.compile:
        use_onednn_linear(model)
        use_fused_norms(model)
    batch = join_pairs([(sequences[0], sequences[1]), (sequences[2], sequences[3])])
    (planned,) = plan_pairs(batch, int(batch.lengths.sum()), device=device)
    try:
        scores = packed(planned.micro_batch)
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
