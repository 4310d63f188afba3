"""Loading a causal language model for packed training, and checking that packing is right for it.

Weights that are trained are float32, whatever ``model.dtype`` says, which is of the inference engine. A bfloat16 weight
has 8 bits: one of 0.02 has steps of 1e-4 about it, so an update at a learning rate of 1e-6 is rounded away whole.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from areal_x.api.config import ModelConfig, TrainConfig
from areal_x.api.errors import ConfigError
from areal_x.api.records import TrainBatch
from areal_x.engine.cpu_linear import use_onednn_linear
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.attention import PACKED_ATTENTION
from areal_x.engine.train.fused_norm import use_fused_norms
from areal_x.engine.train.layer_options import apply_layer_options
from areal_x.engine.train.load_rows import load_into, materialise
from areal_x.engine.train.lora import add_adapters, start_adapters
from areal_x.engine.train.packed_policy import PackedPolicy
from areal_x.engine.train.packing import plan_micro_batches
from areal_x.engine.train.sequence_parallel import check_heads
from areal_x.engine.train.sharding import (
    computes_in_bfloat16,
    decoder_layers,
    free_gathered,
    needs_sharding,
    shard_module,
)
from areal_x.engine.train.varlen import choose_kernel

__all__ = ["DTYPES", "embedding_rows", "load_policy", "resolve_device"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference of logits allowed, as a part of the largest logit."""


def resolve_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu`` or ``cuda``; raises ``ConfigError`` where CUDA is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device=cuda: this machine has no GPU that torch can use; use cpu or auto")
    return device


def load_policy(
    path: Path | str,
    config: ModelConfig,
    train: TrainConfig | None = None,
    ranks: RankContext = ONE_RANK,
    *,
    adapters: bool = False,
) -> PackedPolicy:
    """Load a model with packed attention, in evaluation mode (no dropout: what is trained is what sampled).

    Its weights are float32 (float64 where ``dtype`` says so, for proofs); see the top of this file. With several ranks,
    each reads only its own rows.

    Args:
        adapters: add those of ``train.lora`` and freeze all else.

    Raises:
        ConfigError: the directory is missing or no causal language model, the type of numbers is unknown, or the model
            computes something that packing or chunked log-probabilities would leave out.
    """
    train = train or TrainConfig()
    if config.dtype not in DTYPES:
        raise ConfigError(f"model.dtype: {config.dtype!r} is not known; use one of {', '.join(DTYPES)}")
    if isinstance(path, Path) and not (path / "config.json").is_file():
        raise ConfigError(f"model.path: {path} has no config.json; give a directory in Hugging Face format")
    if config.dtype == "float64":
        train = dataclasses.replace(train, mixed_precision="float32")
    device = resolve_device(config.device)
    by_rows = ranks.num_ranks > 1
    model = _read_model(path, config, empty=by_rows)
    model.eval()
    check_heads(model.config, ranks.sequence_parallel)
    kernel = choose_kernel(model.config, device, torch.bfloat16 if computes_in_bfloat16(train, device) else model.dtype)
    try:
        policy = PackedPolicy(model, train.logprob_chunk_tokens, kernel)
    except ValueError as error:
        raise ConfigError(f"model.path: {path} changes its logits in a way that is not known: {error}") from error
    needs_layers = needs_sharding(ranks, train, device) or train.gradient_checkpointing or train.compile
    layers = decoder_layers(model) if needs_layers else []
    if adapters:
        add_adapters(model, train.lora)
    if not by_rows and not train.cpu_offload:
        policy.to(device)
    shard_module(policy, layers, ranks, train, device, methods=PackedPolicy.METHODS)
    if by_rows:
        materialise(policy, model, torch.device("cpu") if train.cpu_offload else device, device)
        load_into(model, path)
        start_adapters(model)
    _check_packing(policy, str(path), train, device)
    apply_layer_options(model, layers, train, device)
    return policy


def _read_model(path: Path | str, config: ModelConfig, empty: bool) -> PreTrainedModel:
    """The whole model in the host's memory, or an ``empty`` one on the meta device."""
    options = {
        "dtype": torch.float64 if config.dtype == "float64" else torch.float32,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": "eager",
    }
    model: PreTrainedModel
    try:
        if not empty:
            model = AutoModelForCausalLM.from_pretrained(path, **options)
        else:
            model_config = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(model_config, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path} could not be loaded: {str(error).splitlines()[0]}") from error
    return model


def embedding_rows(model: PreTrainedModel) -> int:
    """Ids that the input embedding knows."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


@torch.no_grad()
def _check_packing(policy: PackedPolicy, path: str, train: TrainConfig, device: torch.device) -> None:
    """Compare packed logits with the model's own on three short sequences, two of which share a prefix.

    This finds what no list of architectures could: state that leaks between sequences, positions counted in another
    way, logits scaled after the head. Switches the model to packed attention and to faster layers on a CPU.
    """
    model = policy.model
    sequences = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [7, 8]]
    flat = np.array([token for sequence in sequences for token in sequence], dtype=np.int32)
    ids = (flat % embedding_rows(model)).astype(np.int32)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    starts = np.cumsum(lengths) - lengths
    spans = [torch.from_numpy(ids[a : a + n].astype(np.int64)).to(device) for a, n in zip(starts, lengths, strict=True)]
    expected = torch.cat([policy.own_logits(span)[:-1] for span in spans])
    wanted = np.ones(len(ids), dtype=np.bool_)
    wanted[starts] = False
    zeros = np.zeros(len(ids), dtype=np.float32)
    batch = TrainBatch(ids, wanted, zeros, zeros, lengths, np.array([0, 0, 1], dtype=np.int64))
    model.set_attn_implementation(PACKED_ATTENTION)
    narrow = computes_in_bfloat16(train, device)
    if not narrow and not train.compile:
        use_onednn_linear(model)
        use_fused_norms(model)
    (micro_batch,) = plan_micro_batches(batch, wanted, len(ids), device=device, kernel=policy.kernel)
    try:
        logits = policy.packed_logits(micro_batch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model.path: {path} cannot be trained packed: {error}") from error
    finally:
        free_gathered(policy)
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not difference <= PROBE_TOLERANCE[torch.bfloat16 if narrow else model.dtype]:
        raise ConfigError(
            f"model.path: {path} ({model.config.model_type}) gives other logits packed than alone (relative difference "
            f"{difference:.1g}); its architecture is not supported"
        )
