"""Checkpoints are whole or not there, whatever ends the process that writes them; bad ones are named."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.checkpoint_config import CheckpointConfig
from areal_x.api.errors import CheckpointError
from areal_x.trainer.checkpoint_files import MANIFEST, open_checkpoint
from areal_x.trainer.checkpoint_store import CheckpointStore, best_steps, kept_steps

IDENTITY = {"model": "Small of 12 numbers", "roles": "policy"}
WRITER = Path(__file__).parent / "checkpoint_writer.py"
DISK_BYTES = 8 * 2**20
NUM_KILLS = 6


def store_of(directory: Path, identity: dict[str, str] | None = None, **config: object) -> CheckpointStore:
    return CheckpointStore(directory, CheckpointConfig(**config), identity or IDENTITY)  # type: ignore[arg-type]


def write(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        folder = store.begin(step)
        (folder / "policy").mkdir()
        (folder / "policy" / "weights").write_bytes(bytes([step]) * 1000)
        (folder / "run.json").write_text(json.dumps({"step": step}))
        store.commit(step, {"cursor": step * 10})


def newest(store: CheckpointStore) -> tuple[int | None, list[str]]:
    problems: list[str] = []
    found = store.newest_good(lambda path, problem: problems.append(problem))
    return (None if found is None else found.step), problems


def test_what_was_committed_is_found_again(tmp_path: Path) -> None:
    store = store_of(tmp_path / "checkpoints")
    assert newest(store) == (None, [])
    write(store, 5)
    found = store_of(tmp_path / "checkpoints").open(tmp_path / "checkpoints" / "step_000005")
    assert (found.step, found.facts, found.identity) == (5, {"cursor": 50}, IDENTITY)


def test_begin_replaces_what_a_killed_run_left(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    (store.begin(3) / "old").write_text("half")
    assert list(store.begin(3).iterdir()) == []
    assert newest(store) == (None, [])
    assert [path.name for path in store.remove_partials()] == ["step_000003.partial"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: (path / "policy" / "weights").write_bytes(b"x" * 900), r"policy/weights is truncated \(900 of"),
        (lambda path: (path / "policy" / "weights").write_bytes(b"x" * 1000), r"policy/weights is damaged"),
        (lambda path: (path / "policy" / "weights").write_bytes(b"x" * 1001), r"policy/weights is too long"),
        (lambda path: (path / "run.json").unlink(), r"run\.json is missing"),
        (lambda path: (path / MANIFEST).unlink(), r"has no manifest\.json"),
        (lambda path: (path / MANIFEST).write_text('{"kind": "areal'), r"manifest\.json cannot be read"),
        (lambda path: (path / MANIFEST).write_text("[]"), r"not that of a checkpoint"),
        (lambda path: change(path, format=2), r"format version 2, and this areal_x reads up to 1"),
        (lambda path: change(path, step=9), r"manifest\.json is damaged"),
    ],
)
def test_a_bad_one_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], object], problem: str
) -> None:
    store = store_of(tmp_path)
    write(store, 1, 2)
    bad = tmp_path / "step_000002"
    damage(bad)
    with pytest.raises(CheckpointError, match=problem) as caught:
        store.open(bad)
    assert str(bad) in str(caught.value)
    assert newest(store) == (1, [str(caught.value)])


def change(path: Path, **values: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | values))


def test_another_models_checkpoint_is_refused_with_both_named(tmp_path: Path) -> None:
    write(store_of(tmp_path), 1)
    other = store_of(tmp_path, IDENTITY | {"model": "Large of 99 numbers"})
    step, problems = newest(other)
    assert step is None
    assert "its model is Small of 12 numbers, and this run's is Large of 99 numbers" in problems[0]
    with_critic = store_of(tmp_path, IDENTITY | {"roles": "policy, critic"})
    assert "its roles is policy, and this run's is policy, critic" in newest(with_critic)[1][0]
    assert open_checkpoint(tmp_path / "step_000001").identity == IDENTITY


def test_directories_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: there is no such directory"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        open_checkpoint(tmp_path)


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    store = store_of(tmp_path, keep_last=2, best_metric="eval/accuracy", keep_best=1)
    store.record_metric(1, 0.5)
    write(store, 1, 2, 3, 4)
    assert store.steps() == [1, 3, 4]
    store.record_metric(3, 0.7)
    assert store.steps() == [3, 4]
    write(store, 5, 6)
    store.record_metric(6, 0.6)
    store.record_metric(5, float("nan"))
    assert store.steps() == [3, 5, 6] and store.best_steps() == [3]
    assert store_of(tmp_path, best_metric="eval/accuracy", best_is="lowest").best_steps() == [6]
    assert store_of(tmp_path).best_steps() == []


class SlowFacts(UserDict[str, Any]):
    """Facts that take as long to write as somebody wants: a slow disk."""

    def __init__(self) -> None:
        super().__init__({"cursor": 1})
        self.asked, self.go_on = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[str]:
        self.asked.set()
        assert self.go_on.wait(30.0)
        return super().__iter__()


def test_a_metric_is_recorded_while_a_checkpoint_is_brought_to_the_disk(tmp_path: Path) -> None:
    """The one who records is the loop that serves all episodes: it must not wait for a disk."""
    store, facts = store_of(tmp_path, best_metric="eval/accuracy"), SlowFacts()
    store.begin(1)
    commit = threading.Thread(target=store.commit, args=(1, facts))
    commit.start()
    assert facts.asked.wait(30.0)
    record = threading.Thread(target=store.record_metric, args=(1, 0.5), daemon=True)
    record.start()
    record.join(20.0)
    assert not record.is_alive(), "it waits for the disk"
    facts.go_on.set()
    commit.join(30.0)
    assert store.best_steps() == [1]


def test_what_cannot_be_deleted_does_not_end_the_run(tmp_path: Path) -> None:
    store = store_of(tmp_path, keep_last=1)
    write(store, 1)
    (tmp_path / "step_000001.old.partial").write_text("in the way")
    write(store, 2)
    assert store.steps() == [1, 2]
    (tmp_path / "step_000001.old.partial").unlink()
    write(store, 3)
    assert store.steps() == [3]


def test_later_checkpoints_go_when_the_run_goes_on_from_an_earlier_one(tmp_path: Path) -> None:
    store = store_of(tmp_path, keep_last=5, best_metric="loss")
    write(store, 1, 2, 3)
    store.record_metric(3, 9.0)
    store.record_metric(1, 1.0)
    assert [path.name for path in store.cut_after(1)] == ["step_000002", "step_000003"]
    assert store.steps() == [1] and store.best_steps() == [1]
    write(store, 2, 3)
    assert store.best_steps() == [1]


def test_a_checkpoint_of_a_step_replaces_an_older_one_of_it(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    write(store, 1)
    folder = store.begin(1)
    (folder / "new").write_text("2")
    store.commit(1, {"lineage": 2})
    assert store.open(tmp_path / "step_000001").facts == {"lineage": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


@given(
    steps=st.lists(st.integers(1, 30), unique=True, max_size=12).map(sorted),
    values=st.dictionaries(st.integers(1, 30), st.floats(-1, 1), max_size=12),
    last=st.integers(0, 3),
    best=st.integers(0, 3),
    highest=st.booleans(),
)
def test_what_is_kept_is_the_last_and_the_best(
    steps: list[int], values: dict[int, float], last: int, best: int, highest: bool
) -> None:
    way = "highest" if highest else "lowest"
    config = CheckpointConfig(keep_last=last, keep_best=best, best_metric="m", best_is=way)
    kept, found = kept_steps(steps, values, config), best_steps(steps, values, config)
    measured = [step for step in steps if step in values]
    assert kept == {*steps[len(steps) - min(len(steps), max(last, 1)) :], *found}
    assert len(found) == min(best, len(measured)) and set(found) <= set(measured)
    for step in set(measured) - set(found):
        for better in found:
            assert values[better] >= values[step] if highest else values[better] <= values[step]


def test_killed_at_any_moment_it_leaves_good_checkpoints_and_partial_ones(tmp_path: Path) -> None:
    generator = random.Random(7)
    highest = 0
    for _ in range(NUM_KILLS):
        process = subprocess.Popen([sys.executable, str(WRITER), "endlessly", str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            for _ in range(3):
                highest = int(process.stdout.readline().split()[1])
            time.sleep(generator.uniform(0, 0.03))
        finally:
            process.kill()
            rest = process.stdout.read().decode().split()
            process.wait()
            process.stdout.close()
        store = CheckpointStore(tmp_path, CheckpointConfig(keep_last=2), {"model": "small"})
        step, problems = newest(store)
        # What began before the last line was committed; what began with it may be.
        last = max([highest, *map(int, rest[1::2])])
        assert not problems and step in (last - 1, last), (step, last, problems)
        for good in store.steps():
            assert store.open(tmp_path / f"step_{good:06d}").facts == {"step": good}
        store.remove_partials()
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{good:06d}" for good in store.steps()]


def small_disk(folder: Path) -> list[str]:
    """A command that runs what follows it with a disk of ``DISK_BYTES`` at ``folder``: in a user namespace, which needs
    no privilege, or as a privileged user where that is forbidden. Empty where neither is allowed."""
    mount = f'mount -t tmpfs -o size={DISK_BYTES} none {folder} && exec "$@"'
    for namespace in (["--user", "--map-root-user", "--mount"], ["--mount"]):
        words = ["unshare", *namespace, "sh", "-c", mount, "sh"]
        if runs([*words, "true"]):
            return words
    return []


def test_a_full_disk_costs_that_checkpoint_alone(tmp_path: Path) -> None:
    disk = small_disk(tmp_path)
    # Without a disk that is full, files that the system does not let grow.
    what = "No space left on device" if disk else "File too large"
    command = [*disk, sys.executable, str(WRITER), "on_a_full_disk" if disk else "with_short_files", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    outcomes = {step: outcome for step, outcome, _, _ in found["steps"]}
    assert [step for step, outcome in outcomes.items() if outcome == "written"] == [1, 4, 5, 6]
    assert all(f"{what}; free some space" in outcomes[step] for step in (2, 3))
    # The one before stays good all the time, and nothing of the others stays behind.
    assert [(good, names) for _, _, good, names in found["steps"]] == [
        (good, [f"step_{good:06d}"]) for good in (1, 1, 1, 4, 5, 6)
    ]
    assert found["version"] == 6
    assert found["stopped"].startswith("step 8: 2 checkpoints in a row could not be written")
    assert what in found["stopped"]


def runs(words: list[str]) -> bool:
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory"):
        store_of(tmp_path / "file" / "checkpoints").begin(1)
    assert os.listdir(tmp_path) == ["file"]
