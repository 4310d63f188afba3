"""End to end against TRL's GRPOTrainer: same model, data, group size and batch, two cores, one side after the other.

    python benchmarks/bench_trl.py [--rounds 1] [--case arithmetic|ragged|slow] [--json FILE]

Needs the extra ``areal-x[bench]``. Three cases:

* ``arithmetic``: the task of the quickstart, short completions of nearly equal length;
* ``ragged``: completions of 8 to 128 tokens; the prompt asks for the length (a countdown, which the model has learnt);
* ``slow``: the arithmetic task with a reward whose every sample awaits one second.

The figure is samples per second: samples of a step over the wall-clock time of a step, the first steps left out on
both sides. The two-core bound is samples over ``max(generation, training)``, each as the run itself measured it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WARM_UP_STEPS = 5
BATCH_SIZE = 512
GROUP_SIZE = 8
MODEL = {
    "hidden_size": 128,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
}
"""0.8 million parameters."""


@dataclass(frozen=True)
class Case:
    """One comparison. ``asked`` is the least speed-up; ``asked_of_bound`` the share of the bound that does as well."""

    name: str
    data: str
    reward: str
    max_new_tokens: int
    max_staleness: int
    num_slots: int
    steps: int
    asked: float
    asked_of_bound: float | None = None


CASES = [
    Case("arithmetic", "arithmetic", "exact", 8, 2, 256, 30, 1.3, 0.9),
    Case("ragged", "countdown", "exact", 128, 2, 128, 12, 2.5),
    Case("slow", "arithmetic", "slow", 8, 8, 256, 30, 3.0),
]


def arithmetic_rows(generator: random.Random) -> list[dict[str, str]]:
    """Three-digit additions; the digits of the answer are reversed."""
    pairs = [(generator.randrange(100, 1000), generator.randrange(100, 1000)) for _ in range(8000)]
    return [_row(f"{a}+{b}=", str(a + b)[::-1]) for a, b in pairs]


def countdown_rows(generator: random.Random) -> list[dict[str, str]]:
    """A letter that stands for a number, and the countdown from it: 8 to 128 tokens with the end token."""
    rows = []
    for _ in range(8000):
        length = generator.randrange(7, 128)
        rows.append(_row(chr(256 + length) + "=", "".join(chr(256 + k) for k in range(length - 1, -1, -1))))
    return rows


def _row(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": answer, "completion": answer}


def write_data(folder: Path) -> dict[str, Path]:
    """The two data sets as JSON lines."""
    files = {}
    for name, make in (("arithmetic", arithmetic_rows), ("countdown", countdown_rows)):
        files[name] = folder / name / "train.jsonl"
        files[name].parent.mkdir()
        lines = (json.dumps(row) for row in make(random.Random(1)))
        files[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def common_overrides(data: Path) -> list[str]:
    """What every run of ours here has in common."""
    return [
        f"data.path={data}",
        "data.kwargs={}",
        "data.chat_template=false",
        "reward.fn=arithmetic",
        "evaluation.every_steps=0",
        "observe.report=false",
        "observe.progress=false",
        "observe.trajectories_per_step=0",
        "rollout.max_length=256",
    ]


def run_ours(command: str, folder: Path, overrides: list[str]) -> Path:
    """One ``areal-x`` command in ``folder``; returns the run's directory."""
    words = [sys.executable, "-m", "areal_x.cli", command, "--config-name", "quickstart", *overrides]
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    name = next(word.removeprefix("name=") for word in overrides if word.startswith("name="))
    return folder / "runs" / name


def fine_tune(folder: Path, name: str, data: Path, steps: int) -> Path:
    """The model that both sides begin with."""
    overrides = [
        *common_overrides(data),
        f"name=model-{name}",
        *(f"model.init.{name}={size}" for name, size in MODEL.items()),
        f"sft.steps={steps}",
        "sft.batch_size=128",
        "sft.learning_rate=2e-3",
    ]
    return run_ours("sft", folder, overrides) / "policy"


def measure_ours(case: Case, folder: Path, model: Path, data: Path, steps: int) -> dict[str, Any]:
    """Samples per second and the two-core bound of our run."""
    overrides = [
        *common_overrides(data),
        f"name={case.name}",
        f"model.path={model}",
        "model.init=null",
        "sft.enabled=false",
        f"train.batch_size={BATCH_SIZE}",
        f"train.total_steps={steps}",
        "train.learning_rate=3e-4",
        f"rollout.group_size={GROUP_SIZE}",
        f"rollout.max_staleness={case.max_staleness}",
        f"rollout.num_slots={case.num_slots}",
        f"rollout.sampling.max_new_tokens={case.max_new_tokens}",
    ]
    if case.reward == "slow":
        overrides.append(f"reward.fn={HERE / 'slow_reward.py'}:slow_exact")
    directory = run_ours("train", folder, overrides)
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if "perf/step_seconds" in row][WARM_UP_STEPS:]
    busiest = [max(row["perf/generation_seconds"], row["perf/train_seconds"]) for row in rows]
    return {
        "samples_per_second": BATCH_SIZE * len(rows) / sum(row["perf/step_seconds"] for row in rows),
        "bound": BATCH_SIZE * len(rows) / sum(busiest),
        "generation_seconds": statistics.median(row["perf/generation_seconds"] for row in rows),
        "train_seconds": statistics.median(row["perf/train_seconds"] for row in rows),
        "rewards": [row["reward/mean"] for row in rows],
        "completion_tokens": statistics.mean(row["rollout/completion_tokens"] for row in rows),
    }


def measure_trl(case: Case, folder: Path, model: Path, data: Path, steps: int) -> dict[str, Any]:
    """Samples per second of TRL, in its own process with all cores."""
    output = folder / f"trl-{case.name}.json"
    words = [sys.executable, str(HERE / "trl_peer.py"), "--model", str(model), "--data", str(data)]
    words += ["--reward", case.reward, "--steps", str(steps), "--batch-size", str(BATCH_SIZE)]
    words += ["--group-size", str(GROUP_SIZE), "--max-new-tokens", str(case.max_new_tokens), "--json", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = json.loads(output.read_text(encoding="utf-8"))
    seconds = found["step_seconds"][WARM_UP_STEPS - 1 :]
    return {
        "samples_per_second": BATCH_SIZE / statistics.median(seconds),
        "rewards": found["rewards"],
        "completion_tokens": statistics.mean(found["completion_tokens"]),
    }


def compare(case: Case, folder: Path, model: Path, data: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times; medians."""
    ours, theirs = [], []
    for number in range(rounds):
        ours.append(measure_ours(case, folder / f"round-{number}", model, data, steps))
        theirs.append(measure_trl(case, folder, model, data, steps))
    speed = statistics.median(run["samples_per_second"] for run in ours)
    peer = statistics.median(run["samples_per_second"] for run in theirs)
    bound = statistics.median(run["bound"] for run in ours)
    passed = speed >= case.asked * peer or (case.asked_of_bound is not None and speed >= case.asked_of_bound * bound)
    print(
        f"{case.name:<11} areal_x {speed:7.0f}  TRL {peer:7.0f} samples/s  "
        f"ratio {speed / peer:5.2f} (asked {case.asked})  "
        f"two-core bound {bound:7.0f}, reached {speed / bound:.2f}  "
        f"tokens {ours[0]['completion_tokens']:.1f} / {theirs[0]['completion_tokens']:.1f}  "
        f"mean reward {statistics.mean(ours[0]['rewards']):.3f} / {statistics.mean(theirs[0]['rewards']):.3f}  "
        f"{'PASS' if passed else 'FAIL'}",
        flush=True,
    )
    return {
        "case": case.name,
        "ours": ours,
        "trl": theirs,
        "ratio": speed / peer,
        "of_bound": speed / bound,
        "pass": passed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="instead of each case's own number")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--case", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        import trl  # noqa: F401
    except ImportError:
        parser.error("TRL is not installed: pip install 'areal-x[bench]'")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(arguments.rounds):
            (folder / f"round-{number}").mkdir()
        files = write_data(folder)
        cases = [case for case in CASES if arguments.case in (None, case.name)]
        needed = {case.data for case in cases}
        models = {name: fine_tune(folder, name, file, steps=250) for name, file in files.items() if name in needed}
        for case in cases:
            results.append(
                compare(
                    case, folder, models[case.data], files[case.data], arguments.steps or case.steps, arguments.rounds
                )
            )
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"benchmark": "trl", "cases": results}) + "\n")
    return 0 if all(result["pass"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
