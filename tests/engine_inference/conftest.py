"""Tiny random models in directories, and one started engine for many tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

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
}


def tiny_model(kind: str = "qwen3", seed: int = 0, scale: float = 3.0, **changes: Any) -> PreTrainedModel:
    """A tiny random model. Weights are scaled up so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    sizes = {**_SIZES, "tie_word_embeddings": True, **changes}
    if kind == "gpt2":
        sizes = {
            "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256,
            "bos_token_id": 0, "eos_token_id": EOS,
        }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny model; returns its directory."""

    def save(kind: str = "qwen3", **changes: Any) -> Path:
        path = tmp_path_factory.mktemp(kind)
        tiny_model(kind, **changes).save_pretrained(path)
        return path

    return save
