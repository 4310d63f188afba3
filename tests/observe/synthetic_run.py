"""Writes a realistic run through ``RunWriter``, without training anything.

``python tests/observe/synthetic_run.py DIRECTORY`` makes one to look at, with its report and curves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from areal_x.api.config import ObserveConfig
from areal_x.api.records import Trajectory, VersionSpan
from areal_x.api.reward_api import RewardOutcome
from areal_x.observe import RunWriter, build_report, trajectory_record, write_curves

CONFIG = """\
name: quickstart
seed: 1
data:
  path: arithmetic
model:
  init:
    architecture: qwen3
    hidden_size: 128
rollout:
  group_size: 8
  max_staleness: 2
algorithm:
  name: grpo
train:
  batch_size: 256
  total_steps: 100
reward:
  kwargs:
    api_key: sk-abcdefghijklmnopqrstuvwxyz
"""
HOSTILE = (
    "</script><script>console.error('escaped')</script><img src=x onerror=\"console.error('img')\">&amp;\u2028\x00"
)


def make_record(
    rng: np.random.Generator, step: int, accuracy: float, *, hostile: bool = False, long: bool = False
) -> dict[str, Any]:
    """One kept sample of ``step``, with tokens of up to three versions and sometimes over-age ones."""
    a, b = rng.integers(100, 1000, 2)
    right = rng.random() < accuracy
    answer = str(a + b) if right else str(a + b + int(rng.integers(1, 90)))
    words = [
        "Let",
        " us",
        " add",
        ":\n",
        f"{a}",
        " +",
        f" {b}",
        " =",
        *f" {answer}",
        "\n",
        "####",
        " ",
        *answer,
        "<|end|>",
    ]
    if long:
        words = [word for k in range(60) for word in (*words[:-1], f" (check {k})")] + words[-1:]
    if hostile:
        words.insert(2, HOSTILE)
    prompt = ["<|user|>", "What", " is", f" {a}", " +", f" {b}", "?", "<|assistant|>", "\n"]
    tokens = prompt + words
    start, length = len(prompt), len(prompt) + len(words)
    cut = sorted(rng.integers(start, length + 1, 2).tolist())
    version = step - 1
    numbers = (
        [max(0, version - 3), max(0, version - 1), version]
        if rng.random() < 0.3
        else [max(0, version - 1)] * 2 + [version]
    )
    spans = [VersionSpan(s, e, v) for s, e, v in zip([start, *cut], [*cut, length], numbers, strict=True) if e > s]
    mask = np.arange(length) >= start
    trained = mask.copy()
    for span in spans:
        trained[span.start : span.end] = version - span.version <= 2
    roll = rng.random()
    if roll < 0.04:
        outcome = RewardOutcome("timeout", error="RewardTimeoutError: no answer within 15 s")
    else:
        parts = {"format": 1.0, "accuracy": float(right)}
        outcome = RewardOutcome("ok", 0.2 + 0.8 * right, parts)
    trajectory = Trajectory(
        input_ids=np.arange(length, dtype=np.int32),
        loss_mask=mask,
        logprobs=np.where(mask, -rng.exponential(0.25, length), 0.0).astype(np.float32),
        version_spans=spans,
        outcome=outcome,
        stop_reason="length" if long else "stop",
        prompt="".join(prompt),
        completion="".join(words),
        group_id=int(rng.integers(0, 1000)),
        episode_id=f"episode-{step}-{rng.integers(0, 10**6)}",
    )
    advantage = None if outcome.value is None else (outcome.value - 0.2 - 0.8 * accuracy) / 0.4
    return trajectory_record(
        trajectory, tokens, step=step, version=version, reward=outcome.value, advantage=advantage, trained_mask=trained
    )


def make_metrics(rng: np.random.Generator, step: int, accuracy: float) -> dict[str, Any]:
    """The metrics of one step of 256 samples."""
    fresh, old = int(rng.integers(1800, 2600)), int(rng.integers(900, 1500))
    failed = int(rng.random() < 0.3)
    return {
        "step": step,
        "version": step - 1,
        "reward/mean": float(np.clip(0.2 + 0.8 * accuracy + rng.normal(0, 0.02), 0, 1)),
        "reward/std": 0.35,
        "reward/format": min(1.0, 0.9 + step / 400),
        "reward/accuracy": float(np.clip(accuracy + rng.normal(0, 0.025), 0, 1)),
        "train/loss": -0.02 + rng.normal(0, 0.01),
        "train/grad_norm": 0.4,
        "rollout/masked_token_share": float(rng.random() * 0.01),
        "rollout/in_flight": 420,
        "staleness/lag/0": fresh // 4,
        "staleness/lag/1": fresh,
        "staleness/lag/2": old,
        "outcome/ok": 256 - failed,
        "outcome/timeout": failed,
        "outcome/timeout/no answer within 15 s": failed,
        "perf/samples_per_second": 910 + rng.normal(0, 25),
        "perf/fraction_of_bound": 0.82 + rng.normal(0, 0.015),
        "perf/two_process_ceiling": 0.87,
        "perf/step_seconds": 0.56,
    }


def add_step_spans(writer: RunWriter, rng: np.random.Generator, begin: float, step_seconds: float) -> None:
    """The spans of one step that begins at ``begin``: episodes, scores, training and a weight update."""
    for _ in range(256):
        start = begin + rng.random() * step_seconds
        end = start + 0.05 + rng.lognormal(-2.2, 0.6)
        writer.add_span("generation", "episode", start, end)
        writer.add_span("scoring", "reward", end, end + 0.002 + rng.exponential(0.004))
    middle = begin + step_seconds * 0.22
    writer.add_span("training", "log-probabilities", begin, middle)
    writer.add_span("training", "train step", middle, begin + step_seconds * 0.94)
    writer.add_span("weights", "publish", begin + step_seconds * 0.94, begin + step_seconds * 0.955)


def write_synthetic_run(
    run_dir: Path, *, steps: int = 100, evaluate: bool = True, hostile: bool = True, seed: int = 0, finish: bool = True
) -> Path:
    """A run whose accuracy rises from 0.3 to 0.95. Returns ``run_dir``."""
    rng = np.random.default_rng(seed)
    writer = RunWriter(run_dir, CONFIG, ObserveConfig(), "quickstart")
    now = writer.started_at
    writer.add_span("warm_start", "supervised fine-tuning", now + 1.0, now + 30.0)
    writer.add_span("evaluation", "held out", now + 30.2, now + 32.5)
    if evaluate:
        writer.write_step({"step": 0, "version": 0, "eval/arithmetic/accuracy": 0.3125})
    clock = now + 33.0
    for step in range(1, steps + 1):
        accuracy = 0.3 + 0.66 * (1 - np.exp(-step / 28))
        add_step_spans(writer, rng, clock, 0.56 + rng.normal(0, 0.015))
        clock += 0.58
        metrics = make_metrics(rng, step, accuracy)
        if evaluate and step % 25 == 0:
            metrics["eval/arithmetic/accuracy"] = accuracy + 0.01
        writer.write_step({**metrics, "time": clock - now})
        records = [make_record(rng, step, accuracy, hostile=hostile and k == 0, long=k == 1) for k in range(8)]
        writer.write_trajectories(records)
    if finish:
        writer.add_span("evaluation", "held out", clock, clock + 2.2)
        writer.close()
    return run_dir


if __name__ == "__main__":
    directory = write_synthetic_run(Path(sys.argv[1]))
    print(write_curves(directory), build_report(directory))
