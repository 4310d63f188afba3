"""Tiny models and batches for the train engine's tests."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from areal_x.api.records import TrainBatch

VOCABULARY = 31


def tiny_config(architecture: str, tied: bool) -> PreTrainedConfig:
    sizes = {"vocab_size": VOCABULARY, "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 0}
    if architecture == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **sizes)
    rotary = sizes | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    if architecture == "llama":
        return LlamaConfig(**rotary)
    if architecture == "granite":
        return GraniteConfig(logits_scaling=4.0, attention_multiplier=0.3, residual_multiplier=0.7, **rotary)
    if architecture == "cohere":
        return CohereConfig(logit_scale=0.25, **rotary)
    if architecture == "gemma2":  # Caps and window are small enough to matter; half of the layers slide.
        caps = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 0.5, "sliding_window": 4}
        return Gemma2Config(head_dim=16, query_pre_attn_scalar=16, **rotary, **caps)
    if architecture == "gemma3":
        layers = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
        return Gemma3TextConfig(head_dim=16, query_pre_attn_scalar=16, **rotary, **layers)
    window = (
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1} if "sliding" in architecture else {}
    )
    return Qwen3Config(head_dim=16, **rotary, **window)


class MakeModel(Protocol):
    def __call__(self, architecture: str = "qwen3", tied: bool = True) -> Path: ...


class MakeBatch(Protocol):
    def __call__(
        self,
        group_sizes: list[int],
        seed: int = 0,
        prompt: tuple[int, int] = (3, 9),
        completion: tuple[int, int] = (1, 20),
    ) -> TrainBatch: ...


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a tiny random model; weights are larger than a usual initialisation, so that log-probabilities differ."""
    numbers = itertools.count()

    def make(architecture: str = "qwen3", tied: bool = True) -> Path:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, tied))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5)
        path = tmp_path / f"model-{next(numbers)}"
        model.save_pretrained(path)
        return path

    return make


@pytest.fixture
def make_batch() -> MakeBatch:
    """Random groups: one prompt each, completions of random lengths, some masked tokens, shuffled order."""

    def make(
        group_sizes: list[int], seed: int = 0, prompt: tuple[int, int] = (3, 9), completion: tuple[int, int] = (1, 20)
    ) -> TrainBatch:
        generator = np.random.default_rng(seed)
        samples = []
        for group, size in enumerate(group_sizes):
            start = generator.integers(0, VOCABULARY, generator.integers(*prompt))
            for _ in range(size):
                end = generator.integers(0, VOCABULARY, generator.integers(*completion))
                mask = np.concatenate([np.zeros(len(start), bool), generator.random(len(end)) < 0.9])
                samples.append((np.concatenate([start, end]), mask, group))
        samples = [samples[index] for index in generator.permutation(len(samples))]
        ids = np.concatenate([sample[0] for sample in samples]).astype(np.int32)
        mask = np.concatenate([sample[1] for sample in samples])
        lengths = np.array([len(sample[0]) for sample in samples], dtype=np.int32)
        logprobs = np.where(mask, -3.5 + 0.4 * generator.standard_normal(len(ids)), 0).astype(np.float32)
        advantages = np.repeat(generator.standard_normal(len(lengths)), lengths).astype(np.float32)
        groups = np.array([sample[2] for sample in samples], dtype=np.int64)
        return TrainBatch(ids, mask, logprobs, advantages, lengths, groups)

    return make
