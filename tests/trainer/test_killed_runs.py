"""A run may be killed at any moment: what goes on is one lineage, in which no prompt is skipped or doubled."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from interrupted_runs import Killer, check_lineage, finish, interruptible
from trainer_runs import TINY

MOMENTS = ["any", "write", "any", "write", "start", "write"]


def test_six_kills_leave_one_lineage(tmp_path: Path) -> None:
    # Never over before it is killed; and a kill that comes too late for a checkpoint's write is tried once more.
    killer = Killer(tmp_path, [*TINY, *interruptible(total_steps=100_000)], seed=1)
    for moment in MOMENTS:
        assert killer.kill_once(moment)
    while killer.kills["write"] < 2:
        assert killer.kill_once("write")
    total_steps = max(48, killer.last_checkpoint() + 6)
    directory = finish(tmp_path, [*TINY, *interruptible(total_steps)])
    numbers = check_lineage(directory, total_steps)
    assert numbers["resumes"] >= 4
    assert min(numbers["trained"], numbers["rejected"], numbers["failed"]) > 0
    assert numbers["epochs"] >= 8


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_fifty_kills_leave_one_lineage(tmp_path: Path) -> None:
    num_kills, total_steps, chance, started = 50, 1200, random.Random(7), time.monotonic()
    arguments = [*TINY, *interruptible(total_steps)]
    killer = Killer(tmp_path, arguments, seed=2)
    while killer.kills.total() < num_kills:
        moment = chance.choices(["any", "write", "start"], [5, 4, 1])[0]
        assert killer.kill_once(moment), "the run was over before it could be killed"
    directory = finish(tmp_path, arguments)
    numbers = check_lineage(directory, total_steps)
    assert killer.kills["write"] >= 10, killer.kills
    lines = [
        "# A run that is killed fifty times",
        "",
        "Written by `make soak`: an asynchronous run with a checkpoint after every second step gets SIGKILL at random",
        "moments and goes on with `resume=auto`. In the end every prompt of every epoch has exactly one record, every",
        "step one row of metrics, and no trained token is older than the bound.",
        "",
        "| | |",
        "| --- | --- |",
        f"| kills | {killer.kills.total()} |",
        f"| of them inside a checkpoint write | {killer.kills['write']} |",
        f"| of them while the run started | {killer.kills['start']} |",
        f"| steps | {total_steps} |",
        f"| epochs | {numbers['epochs']} |",
        f"| prompts: trained, rejected, failed | {numbers['trained']}, {numbers['rejected']}, {numbers['failed']} |",
        f"| minutes | {(time.monotonic() - started) / 60:.0f} |",
    ]
    if folder := os.environ.get("AREAL_X_SOAK_OUT"):
        Path(folder, "killed_runs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
