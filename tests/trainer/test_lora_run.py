"""A whole run that trains adapters: merged weights reach the engine, the base stays, and both halves are written."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from trainer_runs import TINY, run_command


def test_a_run_trains_adapters(tmp_path: Path) -> None:
    changes = ["train.lora.rank=4", "train.lora.targets=[q_proj,v_proj]", "train.learning_rate=1e-2"]
    changes += ["sft.enabled=true", "sft.steps=8", "sft.learning_rate=1e-2"]
    run = run_command(tmp_path, "train", "--config-name", "quickstart", *TINY, *changes)
    assert run.status == 0, run.stderr
    steps = [row for row in run.rows() if "train/loss" in row]
    assert [row["version"] for row in steps] == [1, 2, 3]
    # Samples of merged weights have the log-probabilities that the trainer's adapters give them.
    assert all(row["train/behaviour_difference_max"] < 1e-3 for row in steps if row["step"] == 1)
    base = load_file(run.directory / "initial_model" / "model.safetensors")
    policy = load_file(run.directory / "policy" / "model.safetensors")
    adapter = load_file(run.directory / "policy" / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 4
    changed = {name for name in base if not torch.equal(base[name], policy[name])}
    assert changed == {f"model.layers.0.self_attn.{layer}.weight" for layer in ("q_proj", "v_proj")}
    for name in changed:
        stem = "base_model.model." + name.removesuffix(".weight")
        product = adapter[stem + ".lora_B.weight"] @ adapter[stem + ".lora_A.weight"]
        assert (policy[name] - base[name] - 16.0 / 4 * product).abs().max() <= 1e-6
