"""Reward models whose scores are known: 1 for each conversation that ends with one of some characters, else 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForSequenceClassification

from areal_x.engine.init_model import init_model

HIDDEN = 32


def make_known_model(path: Path, good: str = "7", *, poison: str = "", architecture: str | None = None) -> Path:
    """A transformer whose layers add nothing, so that its score is a function of the last token alone.

    Args:
        good: characters that score 1.
        poison: characters that score NaN.
    """
    base = init_model(path / "base", tokenizer="characters", hidden_size=HIDDEN, num_layers=1, intermediate_size=16)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    config: Any = AutoConfig.from_pretrained(base, num_labels=1)
    model = Qwen3ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        embedding = model.model.embed_tokens.weight
        for character in good:
            embedding[tokenizer.convert_tokens_to_ids(character), 0] = 1.0
        for character in poison:
            embedding[tokenizer.convert_tokens_to_ids(character), 1] = float("nan")
        # An RMS norm makes the square root of the hidden size of a single 1.
        model.score.weight[0, 0] = HIDDEN**-0.5
        model.score.weight[0, 1] = 1.0 if poison else 0.0
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
