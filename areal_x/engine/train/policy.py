"""Loading a causal language model for packed training, and checking that packing is right for it.

Weights that are trained are float32, whatever ``model.dtype`` says, which is of the inference engine. A bfloat16 weight
has 8 bits: one of 0.02 has steps of 1e-4 about it, so an update at a learning rate of 1e-6 is rounded away whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from areal_x.api.config import ModelConfig
from areal_x.api.errors import ConfigError
from areal_x.api.records import TrainBatch
from areal_x.engine.cpu_linear import use_onednn_linear
from areal_x.engine.train.attention import PACKED_ATTENTION
from areal_x.engine.train.fused_norm import use_fused_norms
from areal_x.engine.train.packing import MicroBatch, plan_micro_batches

__all__ = ["DTYPES", "embedding_rows", "load_policy", "output_head", "packed_hidden_states", "resolve_device"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of logits allowed, as a part of the largest logit."""
SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def resolve_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu`` or ``cuda``; raises ``ConfigError`` where CUDA is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device: cuda is asked for, but there is no usable GPU; use cpu or auto")
    return device


def load_policy(path: Path | str, config: ModelConfig) -> PreTrainedModel:
    """Load a model with packed attention, in evaluation mode (no dropout: what is trained is what sampled).

    Its weights are float32 (float64 where ``dtype`` says so, for proofs); see the top of this file.

    Raises:
        ConfigError: the directory is missing or no causal language model, the type of numbers is unknown, or the model
            computes something that packing or chunked log-probabilities would leave out.
    """
    if config.dtype not in DTYPES:
        raise ConfigError(f"model.dtype: {config.dtype!r} is not known; use one of {', '.join(DTYPES)}")
    if isinstance(path, Path) and not (path / "config.json").is_file():
        raise ConfigError(f"model.path: {path} has no config.json; give a directory in Hugging Face format")
    device = resolve_device(config.device)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float64 if config.dtype == "float64" else torch.float32,
            trust_remote_code=config.trust_remote_code,
            attn_implementation="eager",
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path} could not be loaded: {str(error).splitlines()[0]}") from error
    torch.nn.Module.to(model, device)
    model.eval()
    for name in SCALED_LOGITS:
        if getattr(model.config, name, None) not in (None, 1.0):
            raise ConfigError(
                f"model.path: {path} changes its logits ({name}), which chunked log-probabilities do not support"
            )
    _check_packing(model, str(path))
    return model


def output_head(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [V, H] and bias [V] of the layer that makes the logits."""
    head = model.get_output_embeddings()
    weight = head.weight
    assert isinstance(weight, torch.Tensor)
    bias: torch.Tensor | None = getattr(head, "bias", None)
    return weight, bias


def embedding_rows(model: PreTrainedModel) -> int:
    """Ids that the input embedding knows."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


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


@torch.no_grad()
def _check_packing(model: PreTrainedModel, path: str) -> None:
    """Compare packed logits with the model's own on three short sequences, two of which share a prefix.

    This finds what no list of architectures could: state that leaks between sequences, positions counted in another
    way, logits scaled after the head. Switches the model to packed attention and to faster layers on a CPU.
    """
    vocabulary = embedding_rows(model)
    sequences = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [7, 8]]
    ids = np.array([token for sequence in sequences for token in sequence], dtype=np.int32) % vocabulary
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    starts = np.cumsum(lengths) - lengths
    own = [
        model(
            input_ids=torch.from_numpy(ids[a : a + n].astype(np.int64))[None].to(model.device), use_cache=False
        ).logits[0, :-1]
        for a, n in zip(starts, lengths, strict=True)
    ]
    expected = torch.cat(own)
    wanted = np.ones(len(ids), dtype=np.bool_)
    wanted[starts] = False
    zeros = np.zeros(len(ids), dtype=np.float32)
    batch = TrainBatch(ids, wanted, zeros, zeros, lengths, np.array([0, 0, 1], dtype=np.int64))
    model.set_attn_implementation(PACKED_ATTENTION)
    use_onednn_linear(model)
    use_fused_norms(model)
    (micro_batch,) = plan_micro_batches(batch, wanted, len(ids), device=model.device)
    try:
        weight, bias = output_head(model)
        logits = torch.nn.functional.linear(packed_hidden_states(model, micro_batch)[micro_batch.rows], weight, bias)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model.path: {path} cannot be trained packed: {error}") from error
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not difference <= PROBE_TOLERANCE[model.dtype]:
        raise ConfigError(
            f"model.path: {path} ({model.config.model_type}) gives other logits packed than alone (relative difference "
            f"{difference:.1g}); its architecture is not supported"
        )
