"""Settings of adapters that cannot work, each refused by key, value and fix before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from areal_x.api.config import ExperimentConfig, RolloutConfig
from areal_x.api.config_checks import check_config
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import check_way

WAY = "rollout.server.weights=lora"


def made(tmp_path: Path, changes: dict[str, Any]) -> ExperimentConfig:
    base = ExperimentConfig(name="run", runs_dir=str(tmp_path / "runs"))
    base.data.path, base.model.init = "arithmetic", {"hidden_size": 32}
    tree = OmegaConf.structured(base)
    for key, value in changes.items():
        OmegaConf.update(tree, key, value)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, ExperimentConfig)
    return config


def adapters(engine: str, rank: int = 8, **changes: Any) -> dict[str, Any]:
    """Adapters published to servers of ``engine``."""
    return {"rollout.engine": engine, "rollout.server.weights": "lora", "train.lora.rank": rank, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"train.lora.rank": 8},
        {"train.lora.rank": 8, "train.lora.targets": ["q_proj"], "train.lora.alpha": 0.5},
        adapters("vllm"),
        adapters("vllm", 512),
        adapters("sglang", **{"model.device": "cuda"}),
    ],
)
def test_what_works_passes(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_config(made(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.lora.rank": -1}, "train.lora.rank=-1: must be 0 or more"),
        ({"train.lora.alpha": 0.0}, "train.lora.alpha=0.0: must be above 0"),
        ({"train.lora.targets": ["q_proj"]}, "needs train.lora.rank above 0"),
        ({"train.lora.rank": 8, "train.lora.targets": ["attn.q_proj"]}, "train.lora.targets='attn.q_proj': names a"),
        ({"train.lora.rank": 8, "train.lora.targets": [""]}, "such as q_proj"),
        (adapters("vllm", 0), f"{WAY}: sends adapters, and none are trained; set train.lora.rank"),
        (adapters("vllm", 513), "train.lora.rank=513: vLLM serves adapters up to rank 512"),
        (adapters("embedded"), f"{WAY}: is for vllm and sglang, and rollout.engine=embedded; use auto"),
        ({"rollout.server.weights": "lara"}, "rollout.server.weights=lara: did you mean lora?"),
        (adapters("sglang", **{"model.device": "cpu"}), f"{WAY}: SGLang serves adapters on a GPU only"),
        (
            adapters("vllm", **{"rollout.base_urls": ["http://127.0.0.1:1"]}),
            f"{WAY}: needs servers that the run starts",
        ),
        (adapters("vllm", **{"rollout.colocated": True}), f"{WAY}: servers that sleep lose the base"),
        (
            adapters("vllm", **{"rollout.server.quantization": "fp8"}),
            f"{WAY}: adapters are not served on a base in fp8",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(made(tmp_path, changes))
    assert expected in str(caught.value)


def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("areal_x.api.train_checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'areal-x\[lora\]'"):
        check_config(made(tmp_path, {"train.lora.rank": 8}))


def test_a_machine_without_a_gpu_is_found_out_when_the_device_is_known() -> None:
    rollout = RolloutConfig(engine="sglang")
    check_way(rollout, "lora", on_cpu=False)
    with pytest.raises(ConfigError, match="on a GPU only"):
        check_way(rollout, "lora", on_cpu=True)
