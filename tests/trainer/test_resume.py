"""A synchronous run that goes on from a checkpoint is bitwise the run that never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
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
ALGORITHM = [
    "algorithm=ppo",
    "critic.learning_rate=1e-3",
    "algorithm.num_mini_batches=2",
    "algorithm.num_epochs=2",
    "algorithm.kl_coefficient=0.01",
    "reference.ema_decay=0.5",
    "sft.enabled=true",
    "sft.steps=3",
]
"""All that has a state of its own: a critic, mini-batches shuffled in several passes, a reference that moves."""


def repeatable(path: Path) -> list[dict[str, Any]]:
    """The rows of a file without what depends on clocks."""
    return [
        {name: value for name, value in row.items() if not name.startswith(TIME_METRICS)} for row in read_rows(path)
    ]


def go_on(folder: Path, *arguments: str) -> FinishedRun:
    return run_command(folder, "train", "--config-name", "quickstart", *SYNCHRONOUS, *arguments)


def test_a_synchronous_run_goes_on_bitwise(tmp_path: Path) -> None:
    (tmp_path / "length_reward.py").write_text(REWARD)
    whole = go_on(tmp_path, *ALGORITHM)
    assert whole.status == 0, whole.stderr
    directory, kept = whole.directory, tmp_path / "kept"
    shutil.copytree(directory, kept)
    resumed = go_on(tmp_path, *ALGORITHM, f"resume={directory}/checkpoints/step_{KEPT_STEP:06d}")
    assert resumed.status == 0, resumed.stderr
    assert f"goes on after step {KEPT_STEP}" in resumed.stdout
    for name in ("metrics.jsonl", "trajectories.jsonl", "prompts.jsonl"):
        assert repeatable(directory / name) == repeatable(kept / name), name
    last = f"checkpoints/step_{STEPS:06d}"
    states = [f"{last}/{role}/rank_00000.safetensors" for role in ("policy", "critic")]
    for name in ("policy/model.safetensors", *states):
        assert (directory / name).read_bytes() == (kept / name).read_bytes(), name
    assert json.loads((directory / "run.json").read_text())["resumes"][0]["step"] == KEPT_STEP
    times = [row["time"] for row in read_rows(directory / "metrics.jsonl")]
    assert times == sorted(times)
    for path in (directory / "checkpoints").glob("step_*/rollout/rollout.json"):
        rollouts = json.loads(path.read_text())
        assert not rollouts["open_groups"] and not rollouts["ready"], "a part of a round would run in another round"


def test_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    """From one rank to two and back; what two learn in a step is what one learns, up to the order of sums."""
    (tmp_path / "length_reward.py").write_text(REWARD)
    one = go_on(tmp_path, "train.total_steps=3", "evaluation.every_steps=0")
    assert one.status == 0, one.stderr
    weights = load_file(one.directory / "policy" / "model.safetensors")
    path = one.directory / "checkpoints" / "step_000002"
    two = go_on(tmp_path, "train.total_steps=3", "evaluation.every_steps=0", "train.num_ranks=2", f"resume={path}")
    assert two.status == 0, two.stderr
    for name, weight in load_file(one.directory / "policy" / "model.safetensors").items():
        np.testing.assert_allclose(weight, weights[name], atol=1e-6)
    state = json.loads((one.directory / "checkpoints/step_000003/policy/state.json").read_text())
    assert state["num_ranks"] == 2
    again = go_on(tmp_path, "train.total_steps=4", "evaluation.every_steps=0", "resume=auto")
    assert again.status == 0, again.stderr
    assert [row["step"] for row in again.rows() if "reward/mean" in row] == [1, 2, 3, 4]
    assert json.loads((one.directory / "run.json").read_text())["status"] == "finished"
