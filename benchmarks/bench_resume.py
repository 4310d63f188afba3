"""Resume of the quickstart, from the command to the first step, against a fresh start from its policy.

    python benchmarks/bench_resume.py [--rounds N] [--steps N] [--json FILE]

One run of the quickstart with its warm start is stopped by ``train.total_steps`` and leaves a checkpoint. Then the two
commands take turns, each in a copy of what it needs:

* **resume**: ``areal-x train --config-name quickstart resume=auto`` in a copy of the run, with more steps to do. It
  finds and verifies the checkpoint, cuts the files back, and reads the state of policy, optimiser and rollouts;
* **fresh**: ``areal-x train --config-name quickstart model.path=THE POLICY`` in an empty folder: no warm start either.

Both are without evaluation, and are timed from the start of the process until the first line of metrics of a trained
step is in the file. Asked: the median of resume is at most 1.5 x the median of fresh.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ASK = 1.5
POLL_SECONDS, START_SECONDS = 0.002, 300.0
COMMON = ["evaluation.every_steps=0", "evaluation.limit=8", "observe.report=false", "observe.progress=false"]
SMALL = [
    *(
        f"model.init.{key}={value}"
        for key, value in (("hidden_size", 64), ("num_layers", 1), ("intermediate_size", 64))
    ),
    "model.init.num_heads=2",
    "model.init.num_kv_heads=1",
    "sft.steps=5",
    "train.batch_size=64",
]


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "areal_x.cli", "train", "--config-name", "quickstart", *COMMON, *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    log = (folder / "output.log").open("wb")
    return subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def steps_in(path: Path) -> int:
    """Trained steps in a file of metrics."""
    return path.read_bytes().count(b'"reward/mean"') if path.exists() else 0


def seconds_to_first_step(folder: Path, arguments: list[str], steps_before: int) -> float:
    """Seconds from the command to the first reported step beyond ``steps_before``; the run is then killed."""
    metrics = folder / "runs" / "quickstart" / "metrics.jsonl"
    started = time.monotonic()
    process = start(folder, arguments)
    try:
        while steps_in(metrics) <= steps_before:
            if process.poll() is not None or time.monotonic() > started + START_SECONDS:
                raise RuntimeError(f"the run did not get to a step:\n{(folder / 'output.log').read_text()[-2000:]}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - started
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of the run that leaves the checkpoint")
    parser.add_argument("--small", action="store_true", help="a tiny model: whether the benchmark works")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = SMALL if options.small else []
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as name:
        base = Path(name) / "base"
        base.mkdir()
        if start(base, [*size, f"train.total_steps={options.steps}"]).wait():
            raise SystemExit((base / "output.log").read_text())
        steps = steps_in(base / "runs" / "quickstart" / "metrics.jsonl")
        resumed, fresh = [], []
        for number in range(options.rounds):
            folder = Path(name) / f"resume-{number}"
            shutil.copytree(base, folder)
            resumed.append(seconds_to_first_step(folder, [*size, "resume=auto", "train.total_steps=100"], steps))
            folder = Path(name) / f"fresh-{number}"
            folder.mkdir()
            policy = base / "runs" / "quickstart" / "policy"
            fresh.append(seconds_to_first_step(folder, [*size, f"model.path={policy}", "train.total_steps=100"], 0))
    ratio = statistics.median(resumed) / statistics.median(fresh)
    print("resume of the quickstart, from the command to the first step")
    print(f"  resume=auto           {statistics.median(resumed):6.2f} s  ({', '.join(f'{s:.2f}' for s in resumed)})")
    print(f"  fresh, same policy    {statistics.median(fresh):6.2f} s  ({', '.join(f'{s:.2f}' for s in fresh)})")
    passed = ratio <= ASK
    print(f"  ratio {ratio:.2f}, asked <= {ASK}: {'PASS' if passed else 'FAIL'}")
    if options.json:
        results = {"resume_seconds": resumed, "fresh_seconds": fresh, "ratio": ratio, "passed": passed}
        with options.json.open("a") as file:
            file.write(json.dumps({"benchmark": "resume", "results": results}) + "\n")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
