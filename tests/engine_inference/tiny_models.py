"""Tiny random models, their directories, and what plain forward passes of them give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from areal_x.api.records import ModelResponse

VOCAB = 61
EOS = 1

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "tie_word_embeddings": True,
}
_GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": EOS,
}


def tiny_model(kind: str = "qwen3", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny random model, scaled up so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**(_GPT2_SIZES if kind == "gpt2" else _SIZES), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    perturb(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model.eval().requires_grad_(False)


def perturb(model: PreTrainedModel, seed: int) -> None:
    """Add seeded noise to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def save_model(path: Path, kind: str = "qwen3", **changes: Any) -> PreTrainedModel:
    """Save a tiny model; returns it."""
    model = tiny_model(kind, **changes)
    model.save_pretrained(path)
    return model


def plain_logprobs(
    model: PreTrainedModel, response: ModelResponse, temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """Log-probability of each sampled token by one forward pass over the whole sequence."""
    ids = torch.from_numpy(np.concatenate([response.input_ids, response.output_ids])).long()[None]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0].double() / temperature
    start = len(response.input_ids)
    logprobs = torch.log_softmax(logits[start - 1 : -1], -1)
    return logprobs.gather(1, ids[0, start:, None])[:, 0].numpy()
