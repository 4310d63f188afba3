"""Writes checkpoints in a process of its own, which a test kills, or whose disk is too small.

python checkpoint_writer.py endlessly DIRECTORY          until it is killed
python checkpoint_writer.py on_a_full_disk DIRECTORY  prints what happened, as JSON
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from areal_x.api.checkpoint_config import CheckpointConfig
from areal_x.api.errors import CheckpointError
from areal_x.trainer.checkpoint_store import CheckpointStore

IDENTITY = {"model": "small"}
STATE_BYTES = 3 * 2**20
BALLAST_BYTES = 4 * 2**20


def write(folder: Path, step: int) -> None:
    """A state of a few files whose bytes tell their step."""
    (folder / "policy").mkdir()
    for number in range(3):
        (folder / "policy" / f"part_{number}").write_bytes(bytes([step % 251]) * (STATE_BYTES // 3))


def endlessly(directory: Path) -> None:
    """Each line says which step begins."""
    store = CheckpointStore(directory, CheckpointConfig(keep_last=2), IDENTITY)
    for step in itertools.count((store.steps() or [0])[-1] + 1):
        print(f"begin {step}", flush=True)
        write(store.begin(step), step)
        store.commit(step, {"step": step})


def on_a_full_disk(directory: Path) -> None:
    """The disk has room for two checkpoints, or for one and the ballast."""
    ballast = directory / "ballast"
    try_and_tell(directory, lambda: ballast.write_bytes(b"x" * BALLAST_BYTES), ballast.unlink)


def with_short_files(directory: Path) -> None:
    """No file may have the size of a state."""
    own = resource.getrlimit(resource.RLIMIT_FSIZE)
    shorter = (STATE_BYTES // 2, own[1])
    try_and_tell(
        directory,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, shorter),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, own),
    )


def try_and_tell(directory: Path, fill: Callable[[], object], free: Callable[[], object]) -> None:
    """Write checkpoints; steps 2 and 3 find no room, and 7 and 8, after which the run would stop."""
    import torch

    from areal_x.api.train_config import TrainConfig
    from areal_x.engine.train.optimizer import ScheduledAdamW
    from areal_x.engine.train.training_state import TrainingState

    module = torch.nn.Linear(1024, STATE_BYTES // 12 // 1024, bias=False)
    optimizer = ScheduledAdamW(module.parameters(), TrainConfig())
    module.weight.grad = torch.ones_like(module.weight)
    optimizer.begin_step()
    optimizer.apply(torch.zeros(()), 1)
    state = TrainingState(module, optimizer)
    store = CheckpointStore(directory / "checkpoints", CheckpointConfig(keep_last=1, max_failures_in_a_row=3))
    told: list[Any] = []
    for step in range(1, 7):
        if step == 2:
            fill()
        if step == 4:
            free()
        outcome = "written"
        try:
            state.begin(store.begin(step) / "policy", version=step)
            state.end()
            store.commit(step)
        except CheckpointError as error:
            outcome = str(error)
            store.abandon(step, error)
        good = store.newest_good(lambda path, problem: told.append(problem))
        told.append([step, outcome, good and good.step, sorted(path.name for path in store.directory.iterdir())])
    restored = state.restore(store.directory / "step_000006" / "policy")
    store_of_two = CheckpointStore(directory / "checkpoints", CheckpointConfig(max_failures_in_a_row=2))
    fill()
    stopped = ""
    for step in (7, 8):
        try:
            state.begin(store_of_two.begin(step) / "policy", version=step)
            state.end()
        except CheckpointError as error:
            try:
                store_of_two.abandon(step, error)
            except CheckpointError as last:
                stopped = f"step {step}: {last}"
    print(json.dumps({"steps": told, "version": restored["version"], "stopped": stopped}))


if __name__ == "__main__":
    os.umask(0o077)
    ways = {"endlessly": endlessly, "on_a_full_disk": on_a_full_disk, "with_short_files": with_short_files}
    ways[sys.argv[1]](Path(sys.argv[2]))
