"""Whole runs with ``cluster=ray``, as commands of their own that connect to one Ray of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TINY = [
    *(f"model.init.{key}={size}" for key, size in {"hidden_size": 32, "head_dim": 16, "intermediate_size": 32}.items()),
    *(f"model.init.{key}={number}" for key, number in {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1}.items()),
    *("model.init.tokenizer=characters", "data.kwargs.num_items=256", "sft.enabled=false", "observe.report=false"),
    *("train.batch_size=32", "train.total_steps=2", "rollout.num_slots=32", "rollout.group_size=4"),
    *("reward.num_workers=1", "evaluation.every_steps=0", "evaluation.limit=16", "model.device=cpu", "name=tiny"),
]
"""Changes that make the quickstart as small as can be."""


def start(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def train_command(address: str, *changes: str) -> list[str]:
    words = ["-m", "areal_x.cli", "train", "--config-name", "quickstart", *TINY]
    return [*words, "cluster=ray", f"cluster.address={address}", *changes]


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_rank_that_is_killed_ends_the_run_and_nothing_reported_is_lost(address: str, tmp_path: Path) -> None:
    process = start(tmp_path, train_command(address, "train.num_ranks=2", "train.total_steps=100000"))
    assert process.stdout is not None
    seen: list[str] = []
    for line in iter(process.stdout.readline, ""):
        seen.append(line)
        if line.lstrip().startswith("3/"):
            break
    (victim, *_) = rank_pids(tmp_path)
    os.kill(victim, signal.SIGKILL)
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "of 2 was killed or crashed" in errors and "Traceback" not in errors
    steps = [line.split("/")[0].strip() for line in [*seen, *rest.splitlines()] if "/100000 " in line]
    written = [row for row in rows(tmp_path / "runs" / "tiny") if "train/loss" in row]
    assert len(written) == len(steps) >= 3


def rank_pids(folder: Path) -> list[int]:
    """Processes that write to the logs of the run's ranks."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(str(folder)) and "/ranks/rank" in target:
            found.add(int(link.parts[2]))
    return sorted(found)


SCRIPT = '''
import sys
from areal_x.launch.checked import checked_config
from areal_x.launch.compose import ConfigSource
from areal_x.launch.run import train
from areal_x.workflow.rlvr import RLVRWorkflow
from neighbour import half

class Counting(RLVRWorkflow):
    """A class of this script, whose instances have state."""
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.num_episodes = 0
    async def arun_episode(self, engine, data):
        self.num_episodes += 1
        if self.num_episodes == 1:
            print("the first episode of", type(self).__name__)
        return await super().arun_episode(engine, data)

class Keep:
    def __init__(self, most):
        self.most, self.seen = most, 0
    def __call__(self, group):
        self.seen += 1
        return True if self.seen <= self.most else "enough"

bonus = 0.125
config = checked_config("train", ConfigSource.named("quickstart"), sys.argv[1:])
sys.exit(train(config, workflow=Counting, reward_fn=lambda completions, **data: bonus + half, group_filter=Keep(1000)))
'''


@pytest.mark.parametrize("place", ["local", "cluster"])
def test_objects_of_a_script_travel(place: str, address: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "neighbour.py").write_text("half = 0.5\n")
    changes = ["cluster=ray", f"cluster.address={address}", "cluster.driver_on_cluster=true", "train.num_ranks=2"]
    process = start(tmp_path, ["script.py", *TINY, *(changes if place == "cluster" else [])])
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert "the first episode of Counting" in output and "2/2" in output
    run = tmp_path / "runs" / "tiny"
    assert [row["reward/mean"] for row in rows(run) if "train/loss" in row] == [0.625, 0.625]
    assert (run / "policy" / "model.safetensors").is_file()
    assert place == "local" or {path.name for path in (run / "ranks").iterdir()} == {"rank0.log", "rank1.log"}


def test_a_path_and_an_error_travel_too(address: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from helper import fail\ndef score(completions, **data):\n    return fail()\n")
    (tmp_path / "helper.py").write_text("def fail():\n    raise ValueError('this reward has had enough')\n")
    changes = ["cluster.driver_on_cluster=true", "reward.fn=mine.py:score"]
    process = start(tmp_path, train_command(address, *changes))
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "this reward has had enough" in errors and errors.strip().count("areal-x: error:") == 1


def test_an_interrupt_reaches_the_loop_on_the_cluster(address: str, tmp_path: Path) -> None:
    process = start(tmp_path, train_command(address, "cluster.driver_on_cluster=true", "train.total_steps=100000"))
    assert process.stdout is not None
    for line in iter(process.stdout.readline, ""):
        if line.lstrip().startswith("2/"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())["status"] == "interrupted"
