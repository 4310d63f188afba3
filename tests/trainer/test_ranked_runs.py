"""Runs whose policy is divided among two processes: the same numbers as in one, and an end when one of them ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from trainer_runs import TINY, FinishedRun, read_rows, run_command, start_command

REWARD = """
def even_digits(prompt, completions, prompt_ids, completion_ids, **data):
    return sum(int(digit) % 2 == 0 for digit in completions if digit.isdigit()) / 8
"""
TOLERANCES = {"train/loss": 1e-5, "train/grad_norm": 1e-4, "train/entropy": 1e-4, "train/behaviour_kl": 1e-5}
"""Relative to 1 or to the number, whichever is larger."""


def ranked(*changes: str) -> list[str]:
    return ["train", "--config-name", "quickstart", *TINY, *changes]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, FinishedRun]:
    """Two runs of the same seed, with a warm start and then synchronous steps, in one process and on two ranks."""

    def run(num_ranks: int) -> FinishedRun:
        folder = tmp_path_factory.mktemp(f"ranks{num_ranks}")
        (folder / "even.py").write_text(REWARD)
        changes = ["reward.fn=even.py:even_digits", "reward.kwargs={}", "rollout.max_staleness=0"]
        changes += ["sft.enabled=true", "sft.steps=4", "sft.batch_size=16", f"train.num_ranks={num_ranks}"]
        return run_command(folder, *ranked(*changes))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((1, 2), pool.map(run, (1, 2)), strict=True))


def test_two_ranks_learn_what_one_process_learns(runs: dict[int, FinishedRun]) -> None:
    assert runs[1].status == 0, runs[1].stderr
    assert runs[2].status == 0, runs[2].stderr
    alone, divided = ([row for row in runs[n].rows() if "reward/mean" in row] for n in (1, 2))
    assert [row["step"] for row in divided] == [1, 2, 3]
    for one, two in zip(alone, divided, strict=True):
        assert one["reward/std"] > 0 and one["train/grad_norm"] > 0, "nothing is learnt, so nothing is compared"
        assert two["reward/mean"] == one["reward/mean"], "other completions were sampled"
        assert two["train/trained_tokens"] == one["train/trained_tokens"]
        for name, tolerance in TOLERANCES.items():
            assert abs(two[name] - one[name]) <= tolerance * max(1.0, abs(one[name])), name


def test_the_policy_of_two_ranks_is_written_whole(runs: dict[int, FinishedRun]) -> None:
    from safetensors.torch import load_file

    alone, divided = (load_file(runs[n].directory / "policy" / "model.safetensors") for n in (1, 2))
    before = load_file(runs[2].directory / "initial_model" / "model.safetensors")
    assert set(divided) == set(alone)
    for name, weight in divided.items():
        assert weight.shape == alone[name].shape
        assert (weight - alone[name]).abs().max() <= 1e-5, name
        assert (weight - before[name]).abs().max() > 1e-4, f"{name} was not trained"


def test_each_rank_has_a_log_of_its_own(runs: dict[int, FinishedRun]) -> None:
    assert sorted(path.name for path in (runs[2].directory / "ranks").iterdir()) == ["rank0.log", "rank1.log"]
    assert not (runs[1].directory / "ranks").exists()


def ranks_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of a run that are ranks, in their order."""
    children = psutil.Process(run.pid).children()
    return sorted((child for child in children if "rank_main" in " ".join(child.cmdline())), key=lambda p: p.pid)


def wait_for_line(run: subprocess.Popen[str], pattern: str) -> list[str]:
    """What a run prints up to a line that matches."""
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(line)
        if re.match(pattern, line):
            return lines
    assert run.stderr is not None
    raise AssertionError(f"the run ended before {pattern!r}: {''.join(lines)}{run.stderr.read()}")


def reported(folder: Path) -> list[dict[str, Any]]:
    (directory,) = (folder / "runs").iterdir()
    return read_rows(directory / "metrics.jsonl")


def test_a_killed_rank_ends_the_run_with_the_cause(tmp_path: Path) -> None:
    run = start_command(tmp_path, *ranked("train.num_ranks=2", "train.total_steps=100000"))
    try:
        wait_for_line(run, r"\s*3/")
        ranks = ranks_of(run)
        assert len(ranks) == 2
        rows = reported(tmp_path)
        ranks[1].kill()
        _, stderr = run.communicate(timeout=120)
        assert run.returncode == 1
        assert re.search(r"rank 1 of 2 was killed by SIGKILL", stderr), stderr
        _, alive = psutil.wait_procs(ranks, timeout=60)
        assert not alive
        assert reported(tmp_path)[: len(rows)] == rows
        (directory,) = (tmp_path / "runs").iterdir()
        assert json.loads((directory / "run.json").read_text())["status"] == "failed"
    finally:
        run.kill()


def test_an_interrupt_of_fine_tuning_ends_its_ranks(tmp_path: Path) -> None:
    changes = ["train.num_ranks=2", "sft.steps=1000000", "sft.batch_size=16", "observe.report=false"]
    run = start_command(tmp_path, "sft", "--config-name", "quickstart", *TINY, *changes)
    try:
        wait_for_line(run, r"warm start: ")
        ranks = ranks_of(run)
        assert len(ranks) == 2
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=120)
        assert run.returncode == 130, stderr
        _, alive = psutil.wait_procs(ranks, timeout=60)
        assert not alive
    finally:
        run.kill()
