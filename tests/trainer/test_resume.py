"""A synchronous run that goes on from a checkpoint is bitwise the run that never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import TINY, FinishedRun, read_rows, run_command

TIME_METRICS = ("perf/", "time", "train/seconds", "critic/seconds", "checkpoint/")
STEPS, KEPT_STEP = 5, 2
SYNCHRONOUS = [
    *TINY,
    "rollout.max_staleness=0",
    f"train.total_steps={STEPS}",
    "evaluation.every_steps=2",
    "evaluation.limit=8",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=9",
    "rollout.sampling.max_new_tokens=12",
    "reward.fn=length_reward.py:length",
    "train.lr_schedule=cosine",
    "train.warmup_steps=2",
]
REWARD = """
def length(completions, **data):
    return float(len(set(completions)))
"""
ALGORITHMS = {
    "mini-batches, several passes, a reference that moves": [
        "algorithm.num_mini_batches=2",
        "algorithm.num_epochs=2",
        "algorithm.kl_coefficient=0.01",
        "reference.ema_decay=0.5",
        "sft.enabled=true",
        "sft.steps=3",
    ],
    "a critic": ["algorithm=ppo", "critic.learning_rate=1e-3"],
}


def repeatable(path: Path) -> list[dict[str, Any]]:
    """The rows of a file without what depends on clocks."""
    return [
        {name: value for name, value in row.items() if not name.startswith(TIME_METRICS)} for row in read_rows(path)
    ]


def go_on(folder: Path, *arguments: str) -> FinishedRun:
    return run_command(folder, "train", "--config-name", "quickstart", *SYNCHRONOUS, *arguments)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_a_synchronous_run_goes_on_bitwise(tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "length_reward.py").write_text(REWARD)
    whole = go_on(tmp_path, *ALGORITHMS[algorithm])
    assert whole.status == 0, whole.stderr
    directory, kept = whole.directory, tmp_path / "kept"
    shutil.copytree(directory, kept)
    resumed = go_on(tmp_path, *ALGORITHMS[algorithm], f"resume={directory}/checkpoints/step_{KEPT_STEP:06d}")
    assert resumed.status == 0, resumed.stderr
    assert f"goes on after step {KEPT_STEP}" in resumed.stdout
    for name in ("metrics.jsonl", "trajectories.jsonl", "prompts.jsonl"):
        assert repeatable(directory / name) == repeatable(kept / name), name
    for name in ("policy/model.safetensors", f"checkpoints/step_{STEPS:06d}/policy/rank_00000.safetensors"):
        assert (directory / name).read_bytes() == (kept / name).read_bytes(), name
    assert json.loads((directory / "run.json").read_text())["resumes"][0]["step"] == KEPT_STEP
    times = [row["time"] for row in read_rows(directory / "metrics.jsonl")]
    assert times == sorted(times)
