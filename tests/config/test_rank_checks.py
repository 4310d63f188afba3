"""Settings of ranks that cannot work, and machines that are too small, each refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from areal_x.api.config import ExperimentConfig
from areal_x.api.config_checks import check_config, check_reward_training
from areal_x.api.errors import ConfigError, MissingExtraError
from areal_x.launch import trainer_environment
from areal_x.launch.trainer_environment import check_evaluation_device, check_trainer_environment, host_bytes

GIB = 2**30


def changed(tmp_path: Path, changes: dict[str, Any]) -> ExperimentConfig:
    base = ExperimentConfig(name="run", runs_dir=str(tmp_path / "runs"))
    base.data.path, base.model.init = "arithmetic", {"hidden_size": 32}
    tree = OmegaConf.structured(base)
    for key, value in changes.items():
        OmegaConf.update(tree, key, value)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, ExperimentConfig)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"train.num_ranks": 2},
        {"train.num_ranks": 8, "train.sequence_parallel": 4, "train.mixed_precision": "bfloat16"},
        {"train.num_ranks": 2, "train.compile": True, "train.gradient_checkpointing": True},
        {"train.num_ranks": 256},
        {"train.num_ranks": 512, "train.sequence_parallel": 2},
        {"train.cpu_offload": True, "model.device": "cuda"},
        {"model.device": "cpu", "train.num_ranks": 2, "rollout.engine": "vllm", "rollout.server.num_servers": 2},
    ],
)
def test_what_works_passes(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_config(changed(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.num_ranks": 0}, "train.num_ranks=0: must be 1 or more"),
        ({"train.sequence_parallel": 0}, "train.sequence_parallel=0: must be 1 or more"),
        ({"train.num_ranks": 4, "train.sequence_parallel": 3}, "train.sequence_parallel=3: ranks that share a micro-"),
        ({"train.sequence_parallel": 2}, "must divide train.num_ranks=1"),
        ({"train.rank_timeout_seconds": 0.0}, "train.rank_timeout_seconds=0.0: must be above 0"),
        ({"train.mixed_precision": "fp16"}, "train.mixed_precision=fp16: must be one of auto, bfloat16, float32"),
        (
            {"train.num_ranks": 257},
            "train.num_ranks=257: train.batch_size / algorithm.num_mini_batches gives a step 256",
        ),
        ({"train.num_ranks": 9, "algorithm.num_mini_batches": 32}, "gives a step 8 samples, which is fewer; use 8"),
        ({"train.num_ranks": 9, "sft.enabled": True, "sft.batch_size": 8}, "sft.batch_size gives a step 8 samples"),
        (
            {"train.num_ranks": 2, "rollout.colocated": True, "rollout.engine": "vllm"},
            "train.num_ranks=2: only one process can take turns with servers",
        ),
        ({"train.cpu_offload": True, "model.device": "cpu"}, "train.cpu_offload=true: with model.device=cpu"),
        ({"train.liger": True, "model.device": "cpu"}, "train.liger=true: Liger's kernels need a GPU"),
    ],
)
def test_what_cannot_work_is_refused_with_key_value_and_fix(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(changed(tmp_path, changes))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_liger_that_is_not_installed_is_named_as_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_x.api.train_checks.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'areal-x\[liger\]'"):
        check_config(changed(tmp_path, {"train.liger": True, "model.device": "cuda"}))


def test_pairs_are_divided_among_ranks_too(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    changes = {"preferences.path": str(pairs), "preferences.batch_size": 4, "train.num_ranks": 4}
    check_reward_training(changed(tmp_path, changes))
    with pytest.raises(ConfigError, match=r"train\.num_ranks=5: preferences\.batch_size gives a step 4 samples"):
        check_reward_training(changed(tmp_path, changes | {"train.num_ranks": 5}))


def test_parts_of_a_step_grow_with_the_ranks(tmp_path: Path) -> None:
    changes = {"train.micro_batch_tokens": 32768, "rollout.max_length": 1024, "train.num_ranks": 1}
    groups = [changed(tmp_path, changes | {"train.num_ranks": ranks}).groups_per_part for ranks in (1, 2, 64)]
    assert groups == [4, 8, 32]
    shared = changes | {"train.num_ranks": 4, "train.sequence_parallel": 4}
    assert changed(tmp_path, shared).groups_per_part == 4


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int, gib: int = 80) -> None:
    """As on a machine with so many GPUs."""

    class Properties:
        total_memory = gib * GIB

    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: Properties)


@pytest.mark.parametrize(
    ("count", "changes", "expected"),
    [
        (0, {"model.device": "cuda"}, "model.device=cuda: this machine has no GPU that torch can use; use cpu or auto"),
        (2, {"model.device": "cuda", "train.num_ranks": 3}, "train.num_ranks=3: takes the GPUs 0 to 2, and this"),
        (2, {"model.device": "cuda:1", "train.num_ranks": 2}, "takes the GPUs 1 to 2, and this machine has 2"),
        (1, {"model.device": "cuda:1"}, "model.device=cuda:1: takes GPU 1, and this machine has 1"),
    ],
)
def test_gpus_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, changes: dict[str, Any], expected: str
) -> None:
    pretend_gpus(monkeypatch, count)
    with pytest.raises(ConfigError) as caught:
        check_trainer_environment(changed(tmp_path, changes))
    assert expected in str(caught.value)
    pretend_gpus(monkeypatch, 4)
    check_trainer_environment(changed(tmp_path, changes))


def test_an_evaluation_needs_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 1)
    check_evaluation_device(changed(tmp_path, {"model.device": "cuda:0", "train.num_ranks": 4}))
    check_evaluation_device(changed(tmp_path, {"model.device": "cuda:5", "rollout.engine": "openai"}))
    with pytest.raises(ConfigError, match=r"model\.device=cuda:5: takes GPU 5, and this machine has 1"):
        check_evaluation_device(changed(tmp_path, {"model.device": "cuda:5"}))


def test_servers_and_ranks_need_gpus_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from areal_x.launch.server_environment import _check_devices

    pretend_gpus(monkeypatch, 4)
    changes = {"model.device": "cuda", "train.num_ranks": 3, "rollout.engine": "vllm"}
    assert not _check_devices(changed(tmp_path, changes), trains=True)
    with pytest.raises(ConfigError, match=r"rollout\.server\.gpus: GPU 4 is not there \(this machine has 4"):
        _check_devices(changed(tmp_path, changes | {"rollout.server.num_servers": 2}), trains=True)
    with pytest.raises(ConfigError, match=r"rollout\.server\.gpus=\[2\]: GPU 2 is the trainer's; name others"):
        _check_devices(changed(tmp_path, changes | {"rollout.server.gpus": [2]}), trains=True)


def huge_model(tmp_path: Path, num_parameters: int) -> str:
    """A checkpoint of that many float32 parameters, as far as its files' headers and sizes say; its data is a hole."""
    import json

    folder = tmp_path / "huge"
    folder.mkdir()
    sizes = {"vocab_size": 1000, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 512}
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Qwen3ForCausalLM"], "dtype": "float32", "tie_word_embeddings": True, **sizes})
    )
    entry = {"dtype": "F32", "shape": [num_parameters], "data_offsets": [0, 4 * num_parameters]}
    header = json.dumps({"weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * num_parameters)
    return str(folder)


def test_a_model_that_memory_cannot_hold_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = huge_model(tmp_path, GIB)  # 4 GiB of weights, 16 GiB with gradients and Adam.
    changes = {"model.path": path, "model.init": None, "model.device": "cpu", "train.num_ranks": 2}
    monkeypatch.setattr(trainer_environment, "host_bytes", lambda: 17 * GIB)
    check_trainer_environment(changed(tmp_path, changes))
    monkeypatch.setattr(trainer_environment, "host_bytes", lambda: 15 * GIB)
    with pytest.raises(ConfigError) as caught:
        check_trainer_environment(changed(tmp_path, changes))
    message = str(caught.value)
    for part in (path, "8.0 GiB for each of 2 ranks", "parameters 2.0 GiB", "has 15.0 GiB left for all of them"):
        assert part in message
    assert "\n" not in message
    check_trainer_environment(changed(tmp_path, changes | {"train.lora.rank": 8}))
    with pytest.raises(ConfigError, match=r"reference 2\.0 GiB"):
        check_trainer_environment(changed(tmp_path, changes | {"algorithm.kl_coefficient": 0.1}))


def test_more_ranks_hold_a_model_that_one_gpu_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"model.path": huge_model(tmp_path, GIB), "model.init": None, "model.device": "cuda"}
    pretend_gpus(monkeypatch, 2, gib=12)
    with pytest.raises(ConfigError, match=r"a GPU has 12\.0 GiB for it; use a smaller model, more train\.num_ranks"):
        check_trainer_environment(changed(tmp_path, changes))
    check_trainer_environment(changed(tmp_path, changes | {"train.num_ranks": 2}))
    monkeypatch.setattr(trainer_environment, "host_bytes", lambda: 17 * GIB)
    check_trainer_environment(changed(tmp_path, changes | {"train.cpu_offload": True}))


def test_the_memory_of_this_machine_is_read() -> None:
    found = host_bytes()
    assert found is not None and 2**20 < found < 2**50
