"""A reward model on two rank processes: the same scores as in one, and weights that leave both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scoring_models import KEY, files_of, make_reward_model, renderer_of, scorer_of

from areal_x.api.config import RewardModelConfig
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.reward_model.scoring_batch import join_conversations, join_scores

ROLE = "reward_model/model"


def test_two_processes_share_a_batch(tmp_path: Path) -> None:
    path = make_reward_model(tmp_path)
    conversations = [renderer_of(path).render(f"{number} and {number + 1}", "five " * number) for number in range(9)]
    batch = join_conversations(conversations, [number // 3 for number in range(9)])
    expected = join_scores(batch, [scorer_of(path).score(batch)])
    ranks = LocalRanks(2, device="cpu", num_threads=1, sequence_parallel=1, timeout_seconds=400, log_dir=tmp_path)
    try:
        config = RewardModelConfig(path=str(path))
        arguments = {"key": KEY, "config": config, "files": files_of(path), "device": "cpu"}
        ranks.build(ROLE, "areal_x.engine.reward_model.scorer:make_scorer", arguments)
        for _ in range(2):
            ranks.call(ROLE, "fetch")
            parts = ranks.call(ROLE, "score", batch)
            assert sorted(np.concatenate([part.index for part in parts]).tolist()) == list(range(9))
            assert all(0 < len(part.index) < 9 for part in parts)
            found = join_scores(batch, parts)
            assert np.ravel(found) == pytest.approx(np.ravel(expected), abs=1e-5)
    finally:
        ranks.close()
