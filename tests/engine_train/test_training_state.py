"""A state that is written and read again is the same, on any number of ranks."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from areal_x.api.config import AlgorithmConfig, LoraConfig, ModelConfig, ReferenceConfig, TrainConfig
from areal_x.api.engine_api import TrainEngine
from areal_x.api.errors import CheckpointError, EngineError
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.ranked_engine import RankedTrainEngine

if TYPE_CHECKING:
    from conftest import MakeBatch, MakeModel

LORA = LoraConfig(rank=4)


@pytest.fixture(scope="module")
def ranks() -> Iterator[LocalRanks]:
    group = LocalRanks(2, timeout_seconds=400)
    try:
        yield group
    finally:
        group.close()


def settings(path: Path, kl: float = 0.0, **train: Any) -> tuple[Path, TrainConfig, AlgorithmConfig, ModelConfig]:
    options: dict[str, Any] = {
        "micro_batch_tokens": 64,
        "learning_rate": 2e-4,
        "lr_schedule": "cosine",
        "warmup_steps": 2,
    } | train
    return path, TrainConfig(**options), AlgorithmConfig(kl_coefficient=kl), ModelConfig(device="cpu")


def written(engine: TrainEngine, path: Path) -> Path:
    engine.begin_checkpoint(path)
    engine.end_checkpoint()
    return path


def weights(engine: TrainEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.named_weights()}


def difference(engine: TrainEngine, expected: dict[str, torch.Tensor]) -> float:
    found = weights(engine)
    assert list(found) == list(expected)
    return max((found[name] - expected[name]).abs().max().item() for name in found)


def test_one_rank_goes_on_bitwise(make_model: MakeModel, make_batch: MakeBatch, tmp_path: Path) -> None:
    path = make_model()
    first, later = make_batch([3, 2, 4]), make_batch([4, 3], seed=1)
    engine = FSDPEngine(*settings(path))
    engine.version = 7
    engine.sft_step(first)
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    engine.begin_checkpoint(tmp_path / "state")
    drawn = random.random(), np.random.rand(), torch.rand(3)
    stats = engine.sft_step(later)
    with pytest.raises(EngineError, match="end_checkpoint"):
        engine.begin_checkpoint(tmp_path / "again")
    engine.end_checkpoint()
    expected = weights(engine)

    other = FSDPEngine(*settings(path))
    other.sft_step(make_batch([2, 2], seed=9))
    other.restore_checkpoint(tmp_path / "state")
    assert other.version == 7
    assert (random.random(), np.random.rand()) == drawn[:2] and torch.equal(torch.rand(3), drawn[2])
    again = other.sft_step(later)
    assert {k: v for k, v in again.items() if "second" not in k} == {
        k: v for k, v in stats.items() if "second" not in k
    }
    assert difference(other, expected) == 0.0


def test_nothing_in_a_state_is_a_pickle(make_model: MakeModel, make_batch: MakeBatch, tmp_path: Path) -> None:
    engine = FSDPEngine(*settings(make_model()))
    engine.sft_step(make_batch([3, 2]))
    names = {file.name for file in written(engine, tmp_path / "state").iterdir()}
    assert names == {"rank_00000.safetensors", "rank_00000.json", "state.json"}
    found = HuggingFaceStorageReader(str(tmp_path / "state")).read_metadata().state_dict_metadata
    for name in ("model.model.norm.weight", "optimizer.exp_avg.model.norm.weight"):
        assert isinstance(stored := found[name], TensorStorageMetadata) and stored.size == (32,)


def test_a_fresh_optimiser_is_restored_fresh(make_model: MakeModel, make_batch: MakeBatch, tmp_path: Path) -> None:
    path = make_model()
    engine = FSDPEngine(*settings(path))
    state = written(engine, tmp_path / "state")
    engine.sft_step(make_batch([3, 2]))
    written(engine, tmp_path / "after")
    expected = weights(engine)
    engine.restore_checkpoint(state)
    assert not engine.optimizer.state
    engine.sft_step(make_batch([3, 2]))
    assert difference(engine, expected) == 0.0


@pytest.mark.parametrize("adapters", [False, True])
def test_other_numbers_of_ranks_go_on(
    make_model: MakeModel, make_batch: MakeBatch, ranks: LocalRanks, tmp_path: Path, adapters: bool
) -> None:
    path, lora = make_model(), LORA if adapters else LoraConfig()
    batches = [make_batch([3, 2, 4], seed=seed) for seed in range(4)]
    alone = FSDPEngine(*settings(path, lora=lora))
    for batch in batches[:2]:
        alone.sft_step(batch)
    alone.version = 2
    state = written(alone, tmp_path / "one")
    before = weights(alone)

    both = RankedTrainEngine(ranks, *settings(path, lora=lora))
    both.restore_checkpoint(state)
    assert both.version == 2
    assert difference(both, before) == 0.0
    alone.sft_step(batches[2])
    both.sft_step(batches[2])
    assert difference(both, weights(alone)) < 1e-5

    back = FSDPEngine(*settings(path, lora=lora))
    back.restore_checkpoint(written(both, tmp_path / "two"))
    assert difference(back, weights(both)) == 0.0
    alone.sft_step(batches[3])
    back.sft_step(batches[3])
    assert difference(back, weights(alone)) < 2e-5
    assert back.learning_rate == alone.learning_rate


def test_a_reference_that_moved_is_part_of_it(make_model: MakeModel, make_batch: MakeBatch, tmp_path: Path) -> None:
    path, batch = make_model(), make_batch([3, 2, 4])
    moving = ReferenceConfig(ema_decay=0.5)
    engine = FSDPEngine(*settings(path, kl=0.1), reference=moving)
    engine.sft_step(batch)
    engine.update_reference()
    other = FSDPEngine(*settings(path, kl=0.1), reference=moving)
    other.restore_checkpoint(written(engine, tmp_path / "state"))
    expected = engine.reference_logprobs(batch)
    assert np.array_equal(other.reference_logprobs(batch), expected)
    unmoved = FSDPEngine(*settings(path, kl=0.1))
    assert not np.array_equal(unmoved.reference_logprobs(batch), expected)


def test_adapters_go_on_their_own_base_alone(make_model: MakeModel, make_batch: MakeBatch, tmp_path: Path) -> None:
    path = make_model()
    engine = FSDPEngine(*settings(path, lora=LORA))
    engine.sft_step(make_batch([3, 2, 4]))
    state = written(engine, tmp_path / "state")
    assert sum(file.stat().st_size for file in state.iterdir()) < (path / "model.safetensors").stat().st_size * 2
    other_base = FSDPEngine(*settings(path)).model
    with torch.no_grad():
        next(iter(other_base.parameters())).add_(1e-3)
    other_base.save_pretrained(tmp_path / "other")
    other = FSDPEngine(*settings(tmp_path / "other", lora=LORA))
    before = weights(other)
    with pytest.raises(CheckpointError, match="weights below its adapters are not those here"):
        other.restore_checkpoint(state)
    assert difference(other, before) == 0.0


def test_what_is_wrong_is_named(make_model: MakeModel, make_batch: MakeBatch, tmp_path: Path) -> None:
    path = make_model()
    engine = FSDPEngine(*settings(path))
    engine.sft_step(make_batch([3, 2]))
    state = written(engine, tmp_path / "state")
    before = weights(engine)

    def refused(change: str, match: str) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(state, copy)
        file = copy / "rank_00000.safetensors"
        facts = json.loads((copy / "state.json").read_text())
        if change == "missing":
            file.unlink()
        elif change == "truncated":
            file.write_bytes(file.read_bytes()[:-9])
        elif change == "version":
            (copy / "state.json").write_text(json.dumps(facts | {"format": 99}))
        elif change == "text":
            (copy / "state.json").write_text("{")
        with pytest.raises(CheckpointError, match=match):
            engine.restore_checkpoint(copy)
        assert difference(engine, before) == 0.0

    refused("missing", r"copy: rank_00000\.safetensors is missing")
    refused("truncated", r"copy cannot be read")
    refused("version", r"format version 99")
    refused("text", r"state\.json cannot be read")
    untied = FSDPEngine(*settings(make_model(tied=False)))
    with pytest.raises(CheckpointError, match=r"from another model: it has no model\.lm_head\.weight"):
        untied.restore_checkpoint(state)
    llama = FSDPEngine(*settings(make_model("llama")))
    with pytest.raises(CheckpointError, match="from another model"):
        llama.restore_checkpoint(state)
    with pytest.raises(CheckpointError, match=r"nowhere: state\.json is missing"):
        engine.restore_checkpoint(tmp_path / "nowhere")


def test_what_cannot_be_written_is_told_at_the_end_and_leaves_ranks_usable(
    make_model: MakeModel, make_batch: MakeBatch, ranks: LocalRanks, tmp_path: Path
) -> None:
    both = RankedTrainEngine(ranks, *settings(make_model()))
    blocked = tmp_path / "state"
    blocked.mkdir()
    (blocked / "rank_00001.safetensors").mkdir()
    both.begin_checkpoint(blocked)
    with pytest.raises(CheckpointError, match=str(blocked)):
        both.end_checkpoint()
    both.sft_step(make_batch([3, 2]))
    both.restore_checkpoint(written(both, tmp_path / "next"))


def test_a_reference_in_the_state_needs_one_here(make_model: MakeModel, make_batch: MakeBatch, tmp_path: Path) -> None:
    path = make_model()
    engine = FSDPEngine(*settings(path, kl=0.1), reference=ReferenceConfig(ema_decay=0.5))
    engine.sft_step(make_batch([3, 2]))
    engine.update_reference()
    with pytest.raises(CheckpointError, match=r"it has reference\.model.*, which is not here"):
        FSDPEngine(*settings(path)).restore_checkpoint(written(engine, tmp_path / "state"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", [False, True])
def test_a_state_of_a_gpu_goes_on_there_and_on_a_cpu(
    make_model: MakeModel, make_batch: MakeBatch, tmp_path: Path, group_of_one: None, offload: bool
) -> None:
    path, batch = make_model(), make_batch([3, 2, 4])

    def engine_on(device: str) -> FSDPEngine:
        given = settings(path, cpu_offload=offload and device == "cuda")
        return FSDPEngine(*given[:3], ModelConfig(device=device))

    engine = engine_on("cuda")
    engine.sft_step(batch)
    before = {name: weight.cpu() for name, weight in weights(engine).items()}
    state = written(engine, tmp_path / "state")
    drawn = torch.rand(3, device="cuda")
    again = engine_on("cuda")
    again.restore_checkpoint(state)
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
    engine.sft_step(batch), again.sft_step(batch)
    ours, theirs = weights(engine), weights(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    on_cpu = engine_on("cpu")
    on_cpu.restore_checkpoint(state)
    assert difference(on_cpu, before) == 0.0
