"""Adapters on two ranks are those of one: the same losses, weights, reference and files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from areal_x.api.config import AlgorithmConfig, LoraConfig, ModelConfig, TrainConfig
from areal_x.api.engine_api import TrainEngine
from areal_x.api.errors import ConfigError
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.ranked_engine import RankedTrainEngine


@pytest.fixture(scope="module")
def ranks() -> Iterator[LocalRanks]:
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]))
        group = LocalRanks(2, timeout_seconds=400)
    try:
        yield group
    finally:
        group.close()


def settings(path: Path, **lora: object) -> tuple[Path, TrainConfig, AlgorithmConfig, ModelConfig]:
    train = TrainConfig(
        micro_batch_tokens=64, learning_rate=1e-2, gradient_checkpointing=True, lora=LoraConfig(**{"rank": 4, **lora})
    )
    return path, train, AlgorithmConfig(kl_coefficient=0.1), ModelConfig(device="cpu")


def weights(engine: TrainEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.named_weights()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= tolerance, name


def test_two_ranks_are_one(ranks: LocalRanks, make_model, make_batch, tmp_path: Path) -> None:
    path, batch = make_model("llama"), make_batch([4, 4, 4])
    one, two = FSDPEngine(*settings(path)), RankedTrainEngine(ranks, *settings(path))
    base = weights(one)
    assert_same(weights(two), base, 0)
    for _ in range(2):
        ours, theirs = one.train_step(batch), two.train_step(batch)
        for name in ("train/loss", "train/grad_norm", "train/reference_kl", "train/entropy", "train/trained_tokens"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5, abs=1e-6), name
    assert ours["train/reference_kl"] > 0
    assert_same(weights(two), weights(one), 1e-5)
    assert_same(dict(two.named_adapters()), dict(one.named_adapters()), 1e-4)
    assert two.adapter_facts == one.adapter_facts
    np.testing.assert_allclose(two.logprobs(batch), one.logprobs(batch), atol=1e-4)

    two.save(tmp_path / "saved")
    saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").named_parameters())
    assert_same(saved, weights(two), 0)
    one.load(tmp_path / "saved")
    assert_same(weights(one), weights(two), 1e-6)
    trained = weights(two)
    two.train_step(batch)
    two.load(tmp_path / "saved")
    assert_same(weights(two), trained, 0)


def test_each_rank_publishes_its_own_rows_merged(ranks: LocalRanks, make_model, make_batch) -> None:
    path, train, algorithm, model = settings(make_model("gpt2"))
    arguments = {"model_path": path, "train": train, "algorithm": algorithm, "model": model}
    ranks.build("policy", "rank_rows:RowsPolicy", arguments)
    ranks.call("policy", "train_step", make_batch([4]))
    one = FSDPEngine(path, train, algorithm, model)
    one.train_step(make_batch([4]))
    whole = weights(one)
    rows: dict[str, list[tuple[int, np.ndarray]]] = {}
    for part in ranks.call("policy", "rows"):
        for name, first, values in part:
            rows.setdefault(name, []).append((first, values))
    assert rows.keys() == whole.keys()
    base = dict(AutoModelForCausalLM.from_pretrained(path).named_parameters())
    changed = 0
    for name, parts in rows.items():
        found = torch.from_numpy(np.concatenate([values for _, values in sorted(parts, key=lambda part: part[0])]))
        assert (found - whole[name]).abs().max() <= 1e-5, name
        changed += not torch.equal(whole[name], base[name])
    assert changed == 2 * 4


def test_a_target_that_is_none_is_refused_by_all_ranks_alike(ranks: LocalRanks, make_model) -> None:
    with pytest.raises(ConfigError, match="'q_prog' is no linear layer"):
        RankedTrainEngine(ranks, *settings(make_model(), targets=["q_prog"]))
