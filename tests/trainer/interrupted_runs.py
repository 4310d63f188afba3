"""Runs that are killed and go on, and what must be true of the lineage that they leave."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer_runs import read_rows, run_command, start_command

from areal_x.api.records import TrajectoryGroup

NUM_ITEMS, GROUP_SIZE, GROUPS = 24, 2, 4
MAX_STALENESS = 2
START_SECONDS, END_SECONDS = 300.0, 60.0


def unreliable(completions: str, answer: str, **data: Any) -> float:
    """A reward that differs, and fails where it is told to."""
    if int(answer) % 11 == 0:
        raise ValueError("no reward for this one")
    return float(len(set(completions)))


def keep_most(group: TrajectoryGroup) -> bool | str:
    return "divisible" if int(group.item["answer"]) % 7 == 0 else True


def interruptible(total_steps: int) -> list[str]:
    """Arguments of an asynchronous run with prompts of every fate and a checkpoint after every second step."""
    here = Path(__file__).resolve()
    return [
        "resume=auto",
        f"data.kwargs.num_items={NUM_ITEMS}",
        f"rollout.group_size={GROUP_SIZE}",
        f"train.batch_size={GROUPS * GROUP_SIZE}",
        f"train.total_steps={total_steps}",
        f"rollout.max_staleness={MAX_STALENESS}",
        "rollout.num_slots=8",
        f"rollout.filter={here}:keep_most",
        f"reward.fn={here}:unreliable",
        "reward.max_failure_rate=1",
        "rollout.max_failures_in_a_row=1000000",
        "rollout.sampling.max_new_tokens=12",
        "checkpoint.every_steps=2",
        "observe.trajectories_per_step=4",
    ]


class Killer:
    """Kills a run at chosen moments.

    Args:
        folder: in which it runs.
        seed: of the moments.
    """

    def __init__(self, folder: Path, arguments: list[str], seed: int) -> None:
        self.folder, self.arguments = folder, arguments
        self.kills: Counter[str] = Counter()
        self._random = random.Random(seed)

    def kill_once(self, moment: str) -> bool:
        """Start the run, or go on with it, and kill it; false if it was over before.

        Args:
            moment: ``start`` (while it starts), ``write`` (in the middle of a checkpoint) or ``any`` (while it trains).
        """
        process = start_command(self.folder, "train", "--config-name", "quickstart", *self.arguments)
        try:
            if moment == "start":
                time.sleep(self._random.uniform(0.5, 4.0))
            else:
                before = self.last_checkpoint()
                is_running = self._wait(process, lambda: self.last_checkpoint() > before)
                if is_running and moment == "write":
                    self._wait(process, lambda: bool(self._partials()))
                    time.sleep(self._random.uniform(0.0, 0.01))
                elif is_running:
                    time.sleep(self._random.uniform(0.0, 0.4))
        finally:
            over = process.poll() is not None
            process.kill()
            _, stderr = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), stderr
        if not over:
            self.kills["write" if self._partials() else moment if moment != "write" else "any"] += 1
            wait_for_the_end_of_session(process.pid)
        return not over

    def _wait(self, process: Any, condition: Any) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.001)
        return False

    def last_checkpoint(self) -> int:
        """Step of the newest checkpoint that is whole."""
        names = [path.name for path in self.folder.glob("runs/*/checkpoints/step_*") if not path.suffix]
        return max((int(name.removeprefix("step_")) for name in names), default=0)

    def _partials(self) -> list[Path]:
        """Checkpoints that are being written; what is being deleted has another name."""
        found = self.folder.glob("runs/*/checkpoints/*.partial")
        return [path for path in found if not path.name.endswith(".old.partial")]


def wait_for_the_end_of_session(session: int) -> None:
    """All processes of a run are in the session of its first one: none may outlive it for long."""
    deadline = time.monotonic() + END_SECONDS
    while left := list(processes_of(session)):
        assert time.monotonic() < deadline, f"processes outlive the run: {left}"
        time.sleep(0.02)


def processes_of(session: int) -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        if int(fields[3]) == session and fields[0] not in "ZX":
            yield head


def finish(folder: Path, arguments: list[str]) -> Path:
    """Let the run go on to its end; returns its directory."""
    run = run_command(folder, "train", "--config-name", "quickstart", *arguments)
    assert run.status == 0, run.stderr
    # A run that was killed before its first checkpoint has nothing to go on from; the next one is another.
    infos = {path: json.loads((path / "run.json").read_text()) for path in (folder / "runs").glob("*")}
    (directory,) = [path for path, info in infos.items() if info["status"] == "finished"]
    return directory


def check_lineage(directory: Path, total_steps: int) -> dict[str, int]:
    """One lineage of weights, in which every prompt has one fate; gives some numbers of it."""
    rows = read_rows(directory / "metrics.jsonl")
    trained = [row for row in rows if "reward/mean" in row]
    assert [row["step"] for row in trained] == list(range(1, total_steps + 1))
    assert [row["version"] for row in trained] == list(range(total_steps))
    times = [row["time"] for row in rows]
    assert times == sorted(times)
    lags = {int(name.rpartition("/")[2]) for row in rows for name in row if name.startswith("staleness/lag/")}
    assert max(lags) <= MAX_STALENESS
    assert not list(directory.glob("checkpoints/*.partial"))
    prompts = read_rows(directory / "prompts.jsonl")
    check_prompts(directory, prompts, total_steps)
    samples = read_rows(directory / "trajectories.jsonl")
    steps = {record["group_id"]: record["step"] for record in prompts if record["end"] == "trained"}
    assert all(steps[sample["group_id"]] == sample["step"] for sample in samples)
    assert [sample["step"] for sample in samples] == sorted(sample["step"] for sample in samples)
    resumes = json.loads((directory / "run.json").read_text()).get("resumes", [])
    ends = Counter(record["end"] for record in prompts)
    return {"prompts": len(prompts), "epochs": len(prompts) // NUM_ITEMS, "resumes": len(resumes), **ends}


def check_prompts(directory: Path, prompts: list[dict[str, Any]], total_steps: int) -> None:
    """Each prompt of each completed epoch has exactly one record; what has none was under way at the end."""
    numbers = [record["group_id"] for record in prompts]
    assert len(numbers) == len(set(numbers)), "a prompt has two fates"
    state = json.loads((directory / f"checkpoints/step_{total_steps:06d}/rollout/rollout.json").read_text())
    under_way = [group["group_id"] for group in [*state["open_groups"], *state["ready"]]]
    assert sorted([*numbers, *under_way]) == list(range(state["next_group_id"])), "a prompt was lost"
    num_complete = min(under_way, default=state["next_group_id"]) // NUM_ITEMS
    items = Counter((record["epoch"], record["item"]) for record in prompts)
    for epoch in range(num_complete):
        assert [items[epoch, item] for item in range(NUM_ITEMS)] == [1] * NUM_ITEMS
    per_step = Counter(record["step"] for record in prompts if record["end"] == "trained")
    assert per_step == dict.fromkeys(range(1, total_steps + 1), GROUPS)
    for record in prompts:
        assert record["end"] in ("trained", "rejected", "failed")
        assert (record["reason"] is None) == (record["end"] == "trained")
        assert record["version"] == record["step"] - 1
        assert record["admitted_version"] <= record["version"] + 1
