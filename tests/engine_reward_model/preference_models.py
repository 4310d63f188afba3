"""Tiny models and preference pairs for the tests of reward model training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from areal_x.api.config import ModelConfig
from areal_x.api.train_config import PreferenceConfig, TrainConfig
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.reward_model.preference_batch import PreferenceBatch, join_pairs
from areal_x.engine.reward_model.preference_engine import PreferenceEngine

__all__ = ["MODEL", "PAD", "VOCABULARY", "make_engine", "random_pairs", "save_causal", "save_reward_model"]

VOCABULARY, PAD, LIKED = 40, 0, 7
MODEL = ModelConfig(device="cpu")


def _config(architecture: str, **changes: int) -> PreTrainedConfig:
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD, **changes}
    if architecture == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **ids)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if architecture == "bert":
        return BertConfig(**sizes, **{**ids, "num_labels": 1})
    rotary = sizes | {"num_key_value_heads": 2, "max_position_embeddings": 128}
    return LlamaConfig(**rotary, **ids) if architecture == "llama" else Qwen3Config(head_dim=16, **rotary, **ids)


def save_causal(path: Path, architecture: str = "qwen3") -> Path:
    """A random causal language model with weights larger than usual, so that scores differ."""
    return _save(path, AutoModelForCausalLM.from_config(_config(architecture)))


def save_reward_model(path: Path, architecture: str = "qwen3", num_labels: int = 1) -> Path:
    """A random sequence classification model."""
    return _save(path, AutoModelForSequenceClassification.from_config(_config(architecture, num_labels=num_labels)))


def _save(path: Path, model: torch.nn.Module) -> Path:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + (parameter.ndim == 1))
    model.save_pretrained(path)
    return path


def make_engine(
    path: Path,
    *,
    budget: int = 4096,
    steps: int = 10,
    learning_rate: float = 1e-3,
    seed: int = 0,
    num_tokens: int = VOCABULARY,
    pad_token_id: int = PAD,
    ranks: RankContext = ONE_RANK,
    mixed_precision: str = "auto",
) -> PreferenceEngine:
    """An engine on one thread of the CPU."""
    return PreferenceEngine(
        path,
        TrainConfig(micro_batch_tokens=budget, mixed_precision=mixed_precision),
        PreferenceConfig(steps=steps, learning_rate=learning_rate, warmup_steps=5),
        MODEL,
        pad_token_id=pad_token_id,
        num_tokens=num_tokens,
        seed=seed,
        ranks=ranks,
    )


def random_pairs(number: int, seed: int, learnable: bool = False) -> PreferenceBatch:
    """Pairs that share a prompt; learnable ones hold the liked token in the chosen answer alone."""
    generator = np.random.default_rng(seed)
    ids = np.setdiff1d(np.arange(3, VOCABULARY), [LIKED])
    pairs = []
    for _ in range(number):
        prompt = generator.choice(ids, generator.integers(4, 10))
        answers = [generator.choice(ids, generator.integers(2, 9)) for _ in range(2)]
        if learnable:
            answers[0][generator.integers(len(answers[0]))] = LIKED
        pairs.append(tuple(np.concatenate([prompt, answer]).astype(np.int32) for answer in answers))
    return join_pairs(pairs)
