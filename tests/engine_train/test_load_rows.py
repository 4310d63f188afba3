"""Models that are built without weights and read them row by row are those that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from areal_x.api.errors import ConfigError
from areal_x.engine.train.load_rows import load_into, materialise, stored_tensors


def read_by_rows(path: Path) -> PreTrainedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    materialise(model, model, torch.device("cpu"))
    load_into(model, path)
    return model.eval()


def save_tiny(path: Path, architecture: str, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    config = tiny_config(architecture, tied)
    if architecture == "llama":
        config = LlamaConfig(**{**config.to_dict(), "rope_parameters": SCALED_ROTARY})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path)
    return model.eval()


SCALED_ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2", "gemma2", "gemma3", "granite", "cohere"])
def test_models_read_by_rows_are_those_of_transformers(tmp_path: Path, architecture: str, tied: bool) -> None:
    expected = save_tiny(tmp_path / "model", architecture, tied)
    model = read_by_rows(tmp_path / "model")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    buffers = dict(model.named_buffers())
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    for name, parameter in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_files_with_an_index_bare_models_and_narrow_types(tmp_path: Path) -> None:
    expected = save_tiny(tmp_path / "whole", "qwen3")
    expected.save_pretrained(tmp_path / "files", max_shard_size="8KB")
    assert len(list((tmp_path / "files").glob("*.safetensors"))) > 2
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "bare")
    assert "embed_tokens.weight" in load_file(tmp_path / "bare" / "model.safetensors")
    for folder in ("files", "bare"):
        model = read_by_rows(tmp_path / folder)
        assert all(torch.equal(model.get_parameter(name), value) for name, value in expected.named_parameters())
    expected.to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    model = read_by_rows(tmp_path / "narrow")
    for name, value in expected.named_parameters():
        assert model.get_parameter(name).dtype == torch.float32
        assert torch.equal(model.get_parameter(name), value.float())


def test_bodies_take_weights_of_whole_models(tmp_path: Path) -> None:
    expected = save_tiny(tmp_path / "model", "qwen3", tied=False)
    body = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path / "model"))
    load_into(body, tmp_path / "model")
    for name, value in body.named_parameters():
        assert torch.equal(value, expected.get_parameter(f"model.{name}")), name


def change_file(folder: Path, change: str) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "lacks a weight":
        del tensors[name]
    elif change == "other shape":
        tensors[name] = tensors[name][:-1].clone()
    if change in ("lacks a weight", "other shape"):
        save_file(tensors, file)
    elif change == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "no header":
        file.write_bytes(b"what is this?")
    elif change == "pickled":
        torch.save(tensors, folder / "pytorch_model.bin")
        file.unlink()
    else:
        file.unlink()
        index = {"lost file": {"weight_map": {name: "model-1.safetensors"}}, "empty index": {}, "list for index": []}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index[change]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lacks a weight", r"has no weight 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        ("other shape", r"up_proj\.weight of shape \(47, 32\), the model needs \(48, 32\)"),
        ("cut short", "cannot be read"),
        ("no header", "cannot be read"),
        ("pickled", r"has no model\.safetensors .*save_pretrained"),
        ("lost file", r"lacks model-1\.safetensors, which its index names"),
        ("empty index", "cannot be read"),
        ("list for index", "cannot be read"),
    ],
)
def test_bad_checkpoints_are_named_and_change_nothing(tmp_path: Path, change: str, message: str) -> None:
    model = save_tiny(tmp_path / "model", "qwen3")
    before = {name: value.clone() for name, value in stored_tensors(model)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path / "model")
    change_file(tmp_path / "model", change)
    other = AutoModelForCausalLM.from_config(model.config)
    other.load_state_dict(before, strict=False)
    with pytest.raises(ConfigError, match=message) as caught:
        load_into(other, tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in stored_tensors(other))
