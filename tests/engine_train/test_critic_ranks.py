"""Two ranks train critic and policy, with a reference, as one process does: divided batches, and divided sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from areal_x.api.config import AlgorithmConfig, CriticConfig, ModelConfig, ReferenceConfig, TrainConfig
from areal_x.api.errors import ConfigError
from areal_x.api.records import TrainBatch
from areal_x.engine.critic.critic_engine import CriticEngine
from areal_x.engine.critic.ranked_critic import RankedCritic
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.ranked_engine import RankedTrainEngine

CPU = ModelConfig(device="cpu")


@pytest.fixture(scope="module", params=[1, 2], ids=["batches", "sequences"])
def ranks(request: pytest.FixtureRequest) -> Iterator[LocalRanks]:
    group = LocalRanks(2, sequence_parallel=request.param, timeout_seconds=400)
    yield group
    group.close()


def critics(path: Path, ranks: LocalRanks, **critic: object) -> tuple[CriticEngine, RankedCritic]:
    settings = CriticConfig(learning_rate=1e-2, **critic)  # type: ignore[arg-type]
    train = TrainConfig(micro_batch_tokens=60)
    algorithm = AlgorithmConfig(num_mini_batches=2, num_epochs=2)
    shared = dataclasses.replace(train, num_ranks=2)
    one = CriticEngine(path, settings, train, algorithm, CPU, seed=7)
    return one, RankedCritic(ranks, path, settings, shared, algorithm, CPU, seed=7)


def with_returns(engine: CriticEngine | RankedCritic, batch: TrainBatch, seed: int) -> TrainBatch:
    returns = np.random.default_rng(seed).standard_normal(len(batch.input_ids)).astype(np.float32)
    return dataclasses.replace(batch, values=engine.values(batch), returns=returns)


def test_two_ranks_train_the_critic_of_one(ranks: LocalRanks, make_model, make_batch, tmp_path: Path) -> None:
    path = make_model()
    one, two = critics(path, ranks)
    for step, sizes in enumerate(([4, 3], [1, 1])):
        batch = make_batch(sizes, seed=step)
        alone, divided = with_returns(one, batch, step), with_returns(two, batch, step)
        np.testing.assert_allclose(divided.values, alone.values, atol=1e-5)
        expected, found = one.train_step(alone), two.train_step(divided)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert name == "critic/seconds" or found[name] == pytest.approx(value, abs=1e-5), name
    # Offload moves rows of sharded weights and their moments, and changes no bit.
    batch = make_batch([3, 2], seed=9)
    results = []
    for offload in (True, False):
        moved = critics(path, ranks, offload=offload)[1]
        metrics = moved.train_step(with_returns(moved, batch, seed=0))
        results.append((moved.values(batch), metrics["critic/loss"], metrics["critic/grad_norm"]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    # What they write goes on in one process.
    two.begin_checkpoint(tmp_path / "state")
    two.end_checkpoint()
    one.restore_checkpoint(tmp_path / "state")
    np.testing.assert_allclose(one.values(batch), results[1][0], atol=1e-5)


def test_two_ranks_keep_the_reference_of_one(ranks: LocalRanks, make_model, make_batch) -> None:
    path = make_model()
    algorithm = AlgorithmConfig(kl_coefficient=0.5)
    train = TrainConfig(micro_batch_tokens=60, learning_rate=1e-2)
    for reference in (ReferenceConfig(ema_decay=0.5, offload=True), ReferenceConfig(path=str(make_model("llama")))):
        one = FSDPEngine(path, train, algorithm, CPU, reference=reference)
        two = RankedTrainEngine(
            ranks, path, dataclasses.replace(train, num_ranks=2), algorithm, CPU, reference=reference
        )
        assert one.facts == two.facts
        for step in range(2):
            batch = make_batch([4, 3], seed=step)
            np.testing.assert_allclose(two.reference_logprobs(batch), one.reference_logprobs(batch), atol=1e-5)
            expected, found = one.train_step(batch), two.train_step(batch)
            for name in ("train/loss", "train/reference_kl", "train/grad_norm"):
                assert found[name] == pytest.approx(expected[name], abs=1e-5), name
            for each in (one, two):
                each.update_reference()
        np.testing.assert_allclose(two.reference_logprobs(batch), one.reference_logprobs(batch), atol=1e-5)


def test_what_no_rank_can_load_is_told_once(ranks: LocalRanks, make_model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"critic\.path=.*nowhere cannot be the critic"):
        RankedCritic(ranks, tmp_path / "nowhere", CriticConfig(), TrainConfig(), AlgorithmConfig(), CPU)
    assert RankedCritic(
        ranks, make_model(), CriticConfig(), TrainConfig(num_ranks=2), AlgorithmConfig(), CPU
    ).get_num_parameters()
