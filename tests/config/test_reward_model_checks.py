"""What is wrong with a reward model is said in one line, before anything starts."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.config import DataConfig, ExperimentConfig, ModelConfig, RewardConfig, RewardModelConfig
from areal_x.api.config_checks import check_config
from areal_x.api.errors import ConfigError
from areal_x.api.reward_model_files import read_reward_model_files


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """A file of zeros."""
    table: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(table | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(end))


def write_model(
    folder: Path, architecture: str = "Qwen3ForSequenceClassification", rows: int = 1, **config: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    known = {"architectures": [architecture], "id2label": {"0": "LABEL_0"}, "vocab_size": 50}
    (folder / "config.json").write_text(json.dumps(known | {"max_position_embeddings": 64} | config))
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [50, 8], "score.weight": [rows, 8]})
    return folder


def config_with(**changes: Any) -> ExperimentConfig:
    config = ExperimentConfig(name="x", data=DataConfig(path="arithmetic"), model=ModelConfig(init={}))
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def test_the_files_of_a_good_model_are_read(tmp_path: Path) -> None:
    files = read_reward_model_files("reward_model.path", write_model(tmp_path))
    assert (files.head, files.num_parameters, files.vocabulary_size, files.max_positions) == ("sequence", 408, 50, 64)
    token = write_model(tmp_path / "token", "LlamaForTokenClassification")
    assert read_reward_model_files("reward_model.path", token).head == "token"
    check_config(config_with(reward_model=RewardModelConfig(path=str(tmp_path))))
    check_config(config_with(reward_model=RewardModelConfig(path="organisation/of-the-hub")))


def test_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "a.safetensors", "score.weight": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_reward_model_files("k", folder).num_parameters == 408
    index["weight_map"]["score.weight"] = "b.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"index\.json names b\.safetensors, which is not there"):
        read_reward_model_files("k", folder)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (
        lambda p: write_model(p, "Qwen3ForCausalLM"),
        r"Qwen3ForCausalLM, which writes text: train .* \(areal-x train-rm\)",
    ),
    (lambda p: write_model(p, "BertModel"), "BertModel, a reward model is a ForSequenceClassification"),
    (lambda p: write_model(p, id2label={"0": "a", "1": "b"}), r"its head has 2 labels; .*num_labels=1"),
    (lambda p: write_model(p, id2label=None), "its head has 2 labels"),
    (lambda p: write_model(p, rows=3), r"score\.weight has 3 rows"),
    (lambda p: write_safetensors(write_model(p) / "model.safetensors", {"x": [1, 1]}), "holds no weights of a head"),
    (lambda p: (write_model(p) / "model.safetensors").unlink(), r"no model\.safetensors; its weights are missing"),
    (
        lambda p: (write_model(p) / "model.safetensors").rename(p / "pytorch_model.bin"),
        "save it once more with save_pretrained",
    ),
    (lambda p: truncate(write_model(p)), r"ends after \d+ of \d+ bytes; copy it again"),
    (lambda p: (write_model(p) / "model.safetensors").write_bytes(b"\xff" * 64), "is no safetensors file"),
    (lambda p: (write_model(p) / "config.json").write_text("{"), r"config\.json is no JSON"),
    (lambda p: (write_model(p) / "config.json").unlink(), r"the folder has no config\.json"),
    (lambda p: p.rmdir(), "no such folder"),
]


@pytest.mark.parametrize(("make", "expected"), WRONG)
def test_files_that_cannot_score_are_refused(tmp_path: Path, make: Callable[[Path], Any], expected: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(ConfigError, match=rf"^reward_model\.path.*{expected}") as caught:
        check_config(config_with(reward_model=RewardModelConfig(path=str(folder))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": "float"}, r"reward_model\.dtype=float: did you mean float(16|32)\?"),
        ({"aggregation": "max"}, r"reward_model\.aggregation=max: "),
        ({"aggregation": "mean"}, r"reward_model\.aggregation=mean: joins .* set reward_model\.step_separator"),
        ({"weight": float("nan")}, r"reward_model\.weight=nan: must be a finite number"),
        ({"max_length": -1}, r"reward_model\.max_length=-1: must be 1 or more"),
        ({"micro_batch_tokens": 0}, r"reward_model\.micro_batch_tokens=0: must be 1 or more"),
        ({"timeout_seconds": 0.0}, r"reward_model\.timeout_seconds=0\.0: must be above 0"),
        ({"step_separator": ""}, r"reward_model\.step_separator='': name the text"),
        ({"step_separator": "\n\n"}, r"reward_model\.step_separator=.*needs a head that scores tokens"),
        ({"path": None}, r"reward_model\.path is not set, and other keys"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    values = {"path": str(write_model(tmp_path)), "weight": 0.5} | changes
    with pytest.raises(ConfigError, match=expected):
        check_config(config_with(reward_model=RewardModelConfig(**values)))


def test_combinations_that_cannot_work_are_refused(tmp_path: Path) -> None:
    good = RewardModelConfig(path=str(write_model(tmp_path)))

    def refused(expected: str, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=expected):
            check_config(config_with(**changes))

    refused("reward_model and reward_models are both set", reward_model=good, reward_models={"a": good})
    refused(r"reward_models\.a\.path=None: name a folder", reward_models={"a": RewardModelConfig()})
    refused(r"reward_models\.mean=mean: a name must not be", reward_models={"mean": good})
    refused(r"reward_models\.a/b=a/b", reward_models={"a/b": good})
    refused(r"reward\.fn=none: leaves no reward at all", reward=RewardConfig(fn="none"))
    weightless = RewardModelConfig(path=good.path, weight=0.0)
    refused("weight of every reward model is 0", reward_model=weightless, reward=RewardConfig(fn="none"))
    config = config_with()
    config.rollout.early_filter = "mine:keep"
    with pytest.raises(ConfigError, match=r"rollout\.early_filter=mine:keep: .*use rollout\.filter"):
        check_config(config)
    check_config(config_with(reward_models={"a": good, "b": good}))
    check_config(config_with(reward_model=good, reward=RewardConfig(fn="none")))
