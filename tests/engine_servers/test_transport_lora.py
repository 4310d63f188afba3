"""Adapter folders: what PEFT's format asks for, and adapters that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from weight_receiver import digests

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.lora import AdapterFacts, LoraTransport

FACTS = AdapterFacts(rank=4, alpha=8.0, target_modules=("q_proj", "down_proj"), base_model="/models/base")
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def adapter(version: int) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(version)
    return [
        (f"{Q}.lora_A.weight", torch.randn(4, 16, generator=generator)),
        (f"{Q}.lora_B.weight", torch.randn(32, 4, generator=generator)),
    ]


def test_each_version_is_an_adapter_folder(tmp_path: Path) -> None:
    transport = LoraTransport(adapter(0), FACTS, directory=tmp_path / "a", dtype=torch.bfloat16)
    for version in (1, 2, 3):
        transport.write(version, adapter(version))
        order = transport.load_order()
        assert (order["way"], order["name"], order["version"]) == ("lora", "policy", version)
        folder = Path(order["path"])
        assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        expected = digests((name, tensor.bfloat16()) for name, tensor in adapter(version))
        assert digests(load_file(folder / "adapter_model.safetensors").items()) == expected
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    assert (config["target_modules"], config["base_model_name_or_path"]) == (["down_proj", "q_proj"], "/models/base")
    assert len(list((tmp_path / "a").iterdir())) == 2
    transport.close()
    transport.close()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "no tensors"),
        ([("model.layers.0.q_proj.lora_A.weight", torch.zeros(4, 1))], "is not named as base_model.model"),
        ([(f"{Q}.weight", torch.zeros(4, 1))], "is not named as base_model.model"),
        ([("base_model.model.x.k_proj.lora_A.weight", torch.zeros(4, 1))], "of none of the modules q_proj, down_proj"),
        ([(f"{Q}.lora_A.weight", torch.zeros(4, 1))], "has no .*lora_B.weight' beside it"),
        ([(f"{Q}.lora_B.weight", torch.zeros(1, 4))], "has no .*lora_A.weight' beside it"),
        ([(adapter(0)[0][0], torch.zeros(5, 16)), adapter(0)[1]], r"shape \(5, 16\), which is not of rank 4"),
        ([adapter(0)[0], (adapter(0)[1][0], torch.zeros(32, 5))], r"shape \(32, 5\), which is not of rank 4"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(
    tmp_path: Path, tensors: list[tuple[str, torch.Tensor]], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        LoraTransport(tensors, FACTS, directory=tmp_path)
