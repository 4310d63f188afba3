"""Tiny reward models with both kinds of heads, and what a plain forward pass of them gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForSequenceClassification, Qwen3ForTokenClassification

from areal_x.api.config import RewardModelConfig
from areal_x.api.reward_model_files import RewardModelFiles, read_reward_model_files
from areal_x.engine.init_model import init_model
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.reward_model.conversations import Conversation, ConversationRenderer
from areal_x.engine.reward_model.scorer import RewardModelScorer, make_scorer

KEY = "reward_model"
CLASSES: dict[str, type[PreTrainedModel]] = {
    "sequence": Qwen3ForSequenceClassification,
    "token": Qwen3ForTokenClassification,
}
TEXTS = ["First we add two and three.\n\nThen we have five, so the answer is 5.", "What is the sum? It is four."]


def make_reward_model(folder: Path, head: str = "sequence", *, tokenizer: str = "bpe", seed: int = 0) -> Path:
    """A random model, its weights larger than usual, so that its scores differ."""
    base = init_model(
        folder / "base",
        texts=TEXTS if tokenizer == "bpe" else None,
        tokenizer=tokenizer,  # type: ignore[arg-type]
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=48,
    )
    torch.manual_seed(seed)
    config: Any = AutoConfig.from_pretrained(base, num_labels=1)
    model = CLASSES[head](config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    path = folder / head
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)
    return path


def files_of(path: Path) -> RewardModelFiles:
    return read_reward_model_files(f"{KEY}.path", path)


def renderer_of(path: Path, **changes: Any) -> ConversationRenderer:
    return ConversationRenderer(KEY, RewardModelConfig(path=str(path), **changes), files_of(path))


def scorer_of(path: Path, ranks: RankContext | None = None, **changes: Any) -> RewardModelScorer:
    config = RewardModelConfig(path=str(path), **changes)
    return make_scorer(ranks or RankContext(), key=KEY, config=config, files=files_of(path), device="cpu")


def plain_scores(path: Path, head: str, conversation: Conversation) -> list[float]:
    """What transformers gives for one conversation alone."""
    model = CLASSES[head].from_pretrained(path, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(conversation.ids.astype(np.int64))[None]).logits.reshape(-1)
    return [float(logits[0])] if head == "sequence" else logits[conversation.positions].tolist()
