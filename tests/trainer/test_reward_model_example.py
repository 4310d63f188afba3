"""The example's four commands, each on less than it asks for, in a folder of their own."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from areal_x.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "reward_model_in_the_loop"
SMALL = [f"model.init.{key}" for key in ("hidden_size=64", "num_layers=2", "num_heads=2", "num_kv_heads=1")]


def metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text().splitlines()]


def test_the_whole_way_from_preferences_to_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example")
    monkeypatch.chdir(tmp_path / "example")
    monkeypatch.setattr(sys, "argv", ["make_preferences.py", "--problems", "400"])
    runpy.run_path("make_preferences.py", run_name="__main__")
    pairs = [json.loads(line) for line in Path("preferences/train.jsonl").read_text().splitlines()]
    assert len(pairs) == 1600
    for pair in pairs:
        first, second = map(int, pair["prompt"].rstrip("=").split("+"))
        assert pair["chosen"] == str(first + second)[::-1] != pair["rejected"]
    sft = ["sft.steps=30", "sft.batch_size=32", "name=addition_policy", "model.init.intermediate_size=128", *SMALL]
    assert main(["sft", "--config-name", "quickstart", *sft]) == 0
    steps = ["preferences.steps=40", "preferences.batch_size=32", "evaluation.limit=100", "evaluation.every_steps=0"]
    assert main(["train-rm", "./reward_model.yaml", *steps, "preferences.learning_rate=5e-3"]) == 0
    held_out = [
        row["rm/held_out_accuracy"] for row in metrics("addition_reward_model") if "rm/held_out_accuracy" in row
    ]
    assert held_out[-1] >= 0.65 and held_out[-1] > held_out[0]
    run = ["train.total_steps=3", "train.batch_size=32", "evaluation.limit=16", "rollout.num_slots=32"]
    assert main(["train", "./reward_model_in_the_loop.yaml", *run, "evaluation.every_steps=0"]) == 0
    rows = metrics("reward_model_in_the_loop")
    trained = [row for row in rows if "train/loss" in row]
    assert len(trained) == 3
    for row in trained:
        assert row["reward/mean"] == pytest.approx(row["reward/model"])
        assert 0 <= row["reward/accuracy"] <= 1
    assert "eval/arithmetic/accuracy" in rows[0]
