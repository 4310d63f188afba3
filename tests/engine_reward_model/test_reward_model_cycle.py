"""Load → score → offload, again and again: nothing stays behind, on a CPU and on a GPU."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scoring_models import CLASSES, KEY, files_of
from transformers import Qwen3Config

from areal_x.api.config import RewardModelConfig
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.reward_model.conversations import Conversation
from areal_x.engine.reward_model.scorer import RewardModelScorer, make_scorer
from areal_x.engine.reward_model.scoring_batch import ScoringBatch, join_conversations

VOCABULARY = 32000
MIB = 2**20


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """433 MB of float32 weights."""
    folder = tmp_path_factory.mktemp("large")
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=128,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    CLASSES["sequence"](config).save_pretrained(folder)
    return folder


def scorer_on(path: Path, device: str, **changes: bool) -> RewardModelScorer:
    config = RewardModelConfig(path=str(path), **changes)  # type: ignore[arg-type]
    return make_scorer(RankContext(), key=KEY, config=config, files=files_of(path), device=device)


def random_batch(seed: int, num_samples: int = 3) -> ScoringBatch:
    """Conversations of other lengths in each cycle, as in a run."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(1, VOCABULARY, rng.integers(4, 17)).astype(np.int32) for _ in range(num_samples)]
    return join_conversations([Conversation(ids, np.array([len(ids) - 1])) for ids in sequences], [0] * num_samples)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def cycle_resident_mib(scorer: RewardModelScorer, num_cycles: int) -> list[float]:
    """Resident memory after each cycle."""
    sizes = []
    for number in range(num_cycles):
        scorer.fetch()
        assert np.isfinite(scorer.score(random_batch(number)).values).all()
        sizes.append(resident_mib())
    return sizes


def slope(sizes: list[float]) -> float:
    """MiB for each cycle, of the last three quarters: the first ones fill caches of the libraries."""
    kept = sizes[len(sizes) // 4 :]
    return float(np.polyfit(np.arange(len(kept)), kept, 1)[0])


def test_a_cycle_leaves_nothing_in_memory(large_model: Path) -> None:
    scorer = scorer_on(large_model, "cpu")
    gc.collect()
    before = resident_mib()
    sizes = cycle_resident_mib(scorer, 12)
    scorer.fetch()
    scorer._home.wait()
    assert scorer.model.model.embed_tokens.weight.sum().isfinite()
    assert resident_mib() - sizes[-1] > 100, "the weights are in memory while they are used"
    scorer.release()
    assert sizes[-1] - before < 60
    assert slope(sizes) < 0.4


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_resident_memory_does_not_grow_over_many_cycles(large_model: Path) -> None:
    sizes = cycle_resident_mib(scorer_on(large_model, "cpu"), 400)
    found = slope(sizes) * MIB / 1e6
    if folder := os.environ.get("AREAL_X_SOAK_OUT"):
        figures = {"cycles": len(sizes), "model_mb": 433, "rss_slope_mb_per_cycle": round(found, 4)}
        Path(folder, "reward_model_soak.json").write_text(json.dumps(figures) + "\n")
    assert found < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_allocator_is_back_at_its_baseline_after_each_of_200_cycles(large_model: Path) -> None:
    scorer = scorer_on(large_model, "cuda")
    kept = scorer_on(large_model, "cuda", offload=False)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for number in range(200):
        batch = random_batch(number)
        scorer.fetch()
        found = scorer.score(batch)
        assert torch.cuda.memory_allocated() - allocated < MIB
        assert torch.cuda.memory_reserved() - reserved < MIB
        if number % 20 == 0:
            assert found.values.tobytes() == kept.score(batch).values.tobytes()
            torch.cuda.empty_cache()
