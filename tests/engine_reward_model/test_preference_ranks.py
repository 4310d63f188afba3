"""Two ranks train a reward model as one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from preference_models import MODEL, PAD, VOCABULARY, make_engine, random_pairs, save_causal, save_reward_model

from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.train_config import PreferenceConfig, TrainConfig
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.reward_model.preference_batch import PreferenceBatch

FACTORY = "areal_x.engine.reward_model.preference_engine:make_preference_engine"


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[LocalRanks]:
    group = LocalRanks(2, timeout_seconds=400)
    yield group
    group.close()


def build(group: LocalRanks, path: Path, num_tokens: int = VOCABULARY) -> None:
    arguments = {
        "path": path,
        "train": TrainConfig(micro_batch_tokens=60),
        "preferences": PreferenceConfig(steps=10, learning_rate=1e-3, warmup_steps=5),
        "model": MODEL,
        "pad_token_id": PAD,
        "num_tokens": num_tokens,
        "seed": 0,
    }
    group.build("preferences", FACTORY, arguments)


@pytest.mark.parametrize("kind", ["causal", "reward model"])
def test_two_ranks_equal_one(kind: str, two_ranks: LocalRanks, tmp_path: Path) -> None:
    path = (save_causal if kind == "causal" else save_reward_model)(tmp_path / "model")
    one = make_engine(path, budget=60)
    build(two_ranks, path)
    batches = [random_pairs(number, seed=number) for number in (9, 1, 16)]
    for batch in batches:
        expected = one.train_step(batch)
        first, second = two_ranks.call("preferences", "train_step", batch)
        assert {name: first[name] for name in first if name != "rm/seconds"} == {
            name: second[name] for name in second if name != "rm/seconds"
        }
        for name in ("rm/loss", "rm/accuracy", "rm/margin", "rm/chosen_score", "rm/rejected_score", "rm/grad_norm"):
            assert first[name] == pytest.approx(expected[name], abs=1e-5), name
    held_out = random_pairs(5, seed=77)
    scores = two_ranks.call("preferences", "scores", held_out)
    assert np.array_equal(*scores)
    np.testing.assert_allclose(scores[0], one.scores(held_out), atol=1e-5)
    two_ranks.call("preferences", "save", tmp_path / "saved")
    np.testing.assert_allclose(make_engine(tmp_path / "saved").scores(held_out), scores[0], atol=1e-6)


def test_what_is_wrong_on_all_ranks_is_told_once_and_they_go_on(two_ranks: LocalRanks, tmp_path: Path) -> None:
    path = save_causal(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"40 embeddings for 41 tokens.*train.num_ranks=1"):
        build(two_ranks, path, num_tokens=VOCABULARY + 1)
    build(two_ranks, path)
    with pytest.raises(EngineError, match="each pair is two sequences"):
        two_ranks.call("preferences", "scores", PreferenceBatch(np.arange(3, dtype=np.int32), np.array([3], np.int32)))
    assert len(two_ranks.call("preferences", "scores", random_pairs(2, seed=0))) == 2
