"""Ranks as actors of a real Ray on this machine: what they compute, and how they end."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.errors import ConfigError, EngineDiedError
from areal_x.api.records import TrainBatch
from areal_x.engine.init_model import init_model
from areal_x.engine.ranks import ray_ranks
from areal_x.engine.ranks.ray_ranks import RayRanks
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.ranked_engine import RankedTrainEngine
from areal_x.launch.cluster_plan import Plan
from areal_x.launch.ray_cluster import RayCluster
from areal_x.launch.ray_placement import RayPlacement

ROLE = "cluster_roles:Role"


@contextmanager
def started(cluster: RayCluster, log_dir: Path, num_ranks: int = 2, seconds: float = 400) -> Iterator[RayRanks]:
    node = cluster.nodes()[0]
    train = TrainConfig(num_ranks=num_ranks, rank_timeout_seconds=seconds)
    with RayPlacement(Plan((node,) * num_ranks, (), 0, 0), 0) as placement:
        ranks = placement.start_ranks(train, "cpu", log_dir)
        try:
            yield ranks
        finally:
            ranks.close()


@pytest.fixture(scope="module")
def ranks(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRanks]:
    """Two ranks that every test leaves as it found them."""
    with started(cluster, tmp_path_factory.mktemp("logs")) as group:
        group.build("role", ROLE, {})
        yield group


def death_of(call: Callable[[], object]) -> EngineDiedError:
    """The error of a call that must fail because ranks ended, in time."""
    started_at = time.monotonic()
    with pytest.raises(EngineDiedError) as caught:
        call()
    assert time.monotonic() - started_at < 100
    return caught.value


def random_batch(vocabulary: int) -> TrainBatch:
    generator = np.random.default_rng(0)
    lengths = generator.integers(6, 24, 16).astype(np.int32)
    ids = generator.integers(1, vocabulary, lengths.sum()).astype(np.int32)
    mask = np.concatenate([np.arange(length) >= 4 for length in lengths])
    logprobs = np.where(mask, -3.0 + 0.1 * generator.standard_normal(len(ids)), 0).astype(np.float32)
    advantages = np.repeat(generator.standard_normal(len(lengths)), lengths).astype(np.float32)
    return TrainBatch(ids, mask, logprobs, advantages, lengths, np.arange(16, dtype=np.int64) // 4)


def test_ranks_answer_and_compute_together(ranks: RayRanks) -> None:
    assert ranks.num_ranks == 2 and ranks.same_host
    assert ranks.call("role", "sum_of_ranks") == [3.0, 3.0]
    values = np.arange(1000, dtype=np.float32)
    assert ranks.call("role", "total", values, 2.0) == [2 * values.sum()] * 2
    assert ranks.call("role", "total", per_rank=[(values, 1.0), (values[:2], 3.0)]) == [values.sum(), 3.0]


def test_what_all_ranks_raise_is_raised_and_they_go_on(ranks: RayRanks) -> None:
    with pytest.raises(ConfigError, match="no such folder") as caught:
        ranks.call("role", "fail", "model.path=nowhere: no such folder")
    assert "in fail" in "".join(caught.value.__notes__)
    assert ranks.call("role", "sum_of_ranks") == [3.0, 3.0]


def test_two_actors_train_as_one_process_does(ranks: RayRanks, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    path = init_model(tmp_path / "model", tokenizer="characters", intermediate_size=48, **sizes)
    train = TrainConfig(learning_rate=1e-3, micro_batch_tokens=96)
    alone = FSDPEngine(path, train, AlgorithmConfig(), ModelConfig(device="cpu"))
    batch = random_batch(alone.facts.vocabulary_size)
    train = TrainConfig(learning_rate=1e-3, micro_batch_tokens=96, num_ranks=2)
    together = RankedTrainEngine(ranks, path, train, AlgorithmConfig(), ModelConfig(device="cpu"))
    for _ in range(3):
        expected, metrics = alone.train_step(batch), together.train_step(batch)
        for name in ("train/loss", "train/grad_norm", "train/entropy", "train/trained_tokens"):
            assert metrics[name] == pytest.approx(expected[name], abs=1e-5), name
    np.testing.assert_allclose(together.logprobs(batch), alone.logprobs(batch), atol=1e-5)
    weights = dict(alone.named_weights())
    for name, weight in together.named_weights():
        np.testing.assert_allclose(weight.detach().numpy(), weights[name].detach().numpy(), atol=1e-5, err_msg=name)


def test_a_rank_that_is_killed_ends_the_call_with_its_last_lines(cluster: RayCluster, tmp_path: Path) -> None:
    with started(cluster, tmp_path) as ranks:
        ranks.build("role", ROLE, {})
        error = death_of(lambda: ranks.call("role", "kill_on", 1))
        assert re.search(r"rank 1 of 2 was killed or crashed .* in role.kill_on; all ranks are stopped", str(error))
        assert "the last line before the end" in error.tail and "rank1.log" in str(error)
        assert "rank 1 of 2" in str(death_of(lambda: ranks.call("role", "sum_of_ranks")))


def test_a_rank_that_is_killed_between_calls_is_heard_of(cluster: RayCluster, tmp_path: Path) -> None:
    with started(cluster, tmp_path) as ranks:
        killer = threading.Timer(0.5, os.kill, (ranks.pids[0], signal.SIGKILL))
        killer.start()
        assert "rank 0 of 2 was killed or crashed" in str(death_of(ranks.watch))


def test_a_rank_that_raises_alone_stops_all(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_ranks, "_OTHERS_SECONDS", 1.0)
    with started(cluster, tmp_path) as ranks:
        ranks.build("role", ROLE, {})
        error = death_of(lambda: ranks.call("role", "fail_on", 0))
        assert "rank 0 of 2 raised ValueError in role.fail_on" in str(error) and "has had enough" in str(error)


def test_a_rank_that_hangs_is_shown_where_it_is(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_ranks, "_STACKS_SECONDS", 60.0)
    with started(cluster, tmp_path, num_ranks=1) as ranks:
        ranks.build("role", ROLE, {})
        monkeypatch.setattr(ranks, "_timeout", 4.0)
        error = death_of(lambda: ranks.call("role", "sleep_on", 0, 600.0))
        assert "no answer within 4 s (train.rank_timeout_seconds) of rank 0 of 1" in str(error)
        assert "in sleep_on" in error.tail


def test_closing_ends_a_call_that_is_under_way(cluster: RayCluster, tmp_path: Path) -> None:
    with started(cluster, tmp_path, num_ranks=1) as ranks:
        ranks.build("role", ROLE, {})
        threading.Timer(0.5, ranks.close).start()
        assert "were closed" in str(death_of(lambda: ranks.call("role", "sleep_on", 0, 600.0)))
        ranks.watch()
