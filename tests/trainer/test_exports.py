"""Checkpoints become models in Hugging Face format that hold what the run's own engine would save."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trainer_runs import TINY_INIT
from transformers import AutoModelForCausalLM, AutoTokenizer

from areal_x.api.config import AlgorithmConfig, CheckpointConfig, ExperimentConfig, LoraConfig, ModelConfig, TrainConfig
from areal_x.api.errors import CheckpointError, ConfigError
from areal_x.api.records import TrainBatch
from areal_x.cli import main
from areal_x.engine.init_model import init_model
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.trainer.checkpoint_identity import run_identity
from areal_x.trainer.checkpoint_store import CheckpointStore
from areal_x.trainer.exports import exported_model, write_export, write_model_files
from areal_x.trainer.model_places import find_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("run") / "initial_model", texts=["1 + 2 = 3"], **TINY_INIT)


def trained(model: Path, rank: int = 0) -> FSDPEngine:
    train = TrainConfig(micro_batch_tokens=64, learning_rate=1e-2, lora=LoraConfig(rank=rank))
    engine = FSDPEngine(model, train, AlgorithmConfig(), ModelConfig(device="cpu"))
    ids = np.array([1, 2, 3, 1, 2, 3, 4], dtype=np.int32)
    mask, zeros = np.array([0, 1, 1, 1, 0, 1, 1], dtype=bool), np.zeros(7, dtype=np.float32)
    batch = TrainBatch(ids, mask, zeros, zeros, np.array([4, 3], dtype=np.int32), np.array([0, 1]))
    for _ in range(2):
        engine.sft_step(batch)
    return engine


def checkpoint_of(engine: FSDPEngine, model: Path, run: Path) -> Path:
    store = CheckpointStore(run / "checkpoints", CheckpointConfig())
    partial = store.begin(12)
    engine.begin_checkpoint(partial / "policy")
    write_model_files(partial / "model", model, AutoTokenizer.from_pretrained(model))
    engine.end_checkpoint()
    return store.commit(12).path


def same_model(found: Path, expected: Path) -> bool:
    ours, theirs = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    configs = [json.loads((folder / "config.json").read_text()) for folder in (found, expected)]
    return (
        configs[0] == configs[1]
        and list(ours) == list(theirs)
        and all(map(torch.equal, ours.values(), theirs.values()))
    )


@pytest.mark.parametrize("rank", [0, 4])
def test_an_exported_checkpoint_is_what_the_engine_saves(model: Path, tmp_path: Path, rank: int) -> None:
    engine = trained(model, rank)
    checkpoint = checkpoint_of(engine, model, tmp_path)
    engine.save(tmp_path / "saved")
    assert main(["export", str(checkpoint), str(tmp_path / "exported")]) == 0
    assert same_model(tmp_path / "exported", tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").encode("1 + 2") == AutoTokenizer.from_pretrained(
        model
    ).encode("1 + 2")
    AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    if rank:
        ours, theirs = (
            load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("exported", "saved")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_adapters_need_the_base_that_they_were_trained_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = trained(model, 4)
    moved = tmp_path / "moved"
    checkpoint = checkpoint_of(engine, model, tmp_path)
    engine.save(tmp_path / "saved")
    assert main(["export", str(checkpoint), str(moved), "--base-model", str(tmp_path / "nowhere")]) == 1
    assert "say where it is (--base-model)" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(moved), "--base-model", str(tmp_path / "saved")]) == 1
    assert "the weights below its adapters are not those of" in capsys.readouterr().err
    assert not list(tmp_path.glob("moved*"))
    assert main(["export", str(checkpoint), str(moved), "--base-model", str(model)]) == 0
    assert same_model(moved, tmp_path / "saved")


def test_a_checkpoint_is_exported_once(model: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(trained(model), model, tmp_path)
    exported = exported_model(checkpoint)
    assert exported == tmp_path / "checkpoints" / "step_000012.export"
    written = (exported / "model.safetensors").stat().st_mtime_ns
    assert exported_model(str(checkpoint)) == exported
    assert (exported / "model.safetensors").stat().st_mtime_ns == written
    assert exported_model(exported) is None and exported_model(model) is None and exported_model("some/name") is None
    # Another checkpoint under the same name is exported anew, and takes its export along when it is deleted.
    engine = trained(model)
    checkpoint_of(engine, model, tmp_path)
    assert not exported.exists()
    exported_model(checkpoint)
    CheckpointStore(tmp_path / "checkpoints", CheckpointConfig()).cut_after(0)
    assert not list((tmp_path / "checkpoints").glob("step*"))


def test_what_cannot_be_exported_is_told(model: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(trained(model), model, tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        main_error(["export", str(checkpoint), str(model)])
    file = checkpoint / "policy" / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"policy/rank_00000\.safetensors is truncated"):
        exported_model(checkpoint)
    with pytest.raises(CheckpointError, match="there is no such directory"):
        main_error(["export", str(tmp_path / "nowhere"), str(tmp_path / "out")])


def test_the_newest_checkpoint_of_a_run_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in ("step_000004", "step_000010", "step_000012.partial"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").touch()
    newest = folder / "step_000010"
    assert find_checkpoint(tmp_path) == find_checkpoint(folder) == find_checkpoint(newest) == newest
    assert find_checkpoint(folder / "step_000004") == folder / "step_000004"
    assert find_checkpoint(tmp_path / "nowhere") == tmp_path / "nowhere"


def main_error(words: list[str]) -> None:
    from areal_x.cli import build_parser

    arguments = build_parser().parse_args(words)
    arguments.run(arguments)


def test_an_export_of_a_run_is_whole_or_not_there(model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    engine = trained(model)
    folder = tmp_path / "exports" / "step_000003"
    for _ in range(2):
        assert write_export(folder, engine.save, tokenizer) == folder
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)

    def fail(path: Path) -> None:
        engine.save(path)
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="step_000004: No space left on device; free some space"):
        write_export(tmp_path / "exports" / "step_000004", fail, tokenizer)
    assert [path.name for path in folder.parent.iterdir()] == ["step_000003"]


def test_the_identity_of_a_run_tells_models_apart(model: Path, tmp_path: Path) -> None:
    plain = ExperimentConfig()
    found = run_identity(plain, model)
    assert found["model"].startswith("Qwen3ForCausalLM of ") and found["adapters"] == "none"
    assert found == run_identity(plain, model)
    other = init_model(tmp_path / "other", texts=["1 + 2 = 3"], **TINY_INIT | {"hidden_size": 64})
    assert run_identity(plain, other)["model"] != found["model"]
    critic = ExperimentConfig(algorithm=AlgorithmConfig(advantage="gae"))
    assert run_identity(critic, model)["roles"] == "policy, critic"
    lora = ExperimentConfig(train=TrainConfig(lora=LoraConfig(rank=4, targets=["q_proj"])))
    assert run_identity(lora, model)["adapters"] == "rank 4, alpha 16, on q_proj"
