"""Faults of real runs: bad input before any work, failed rewards, a killed engine, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from trainer_runs import TINY, read_rows, run_command, start_command

REWARDS = """
import os, signal, time

def hangs_on_some(completions, answer):
    if answer.startswith("0"):
        time.sleep(60)
    return float(completions.strip() == answer)

def raises(completions, answer):
    raise RuntimeError("the scorer is broken")

def segfaults(completions, answer):
    os.kill(os.getpid(), signal.SIGSEGV)

def clash(completions, prompt_ids):
    return 1.0

closure = lambda completions, answer: 1.0
not_a_workflow = 3

async def waits(completions, answer):
    import asyncio
    await asyncio.sleep(0.001)
    return {"reward": 0.5, "format": 1.0, "accuracy": 0.0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(REWARDS)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": \n')
    (tmp_path / "columns.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    foreign = tmp_path / "runs" / "thesis"
    foreign.mkdir(parents=True)
    (foreign / "chapter.tex").write_text("years of work")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.path=nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        (["data.path=broken.jsonl", "data.kwargs={}", "reward.fn=arithmetic"], ["broken.jsonl", "2"]),
        (["data.path=columns.jsonl", "data.kwargs={}", "reward.fn=arithmetic"], ["prompt", "question"]),
        (["train.learing_rate=1"], ["train.learing_rate", "learning_rate"]),
        (["rollout.group_size=5"], ["group_size", "batch_size"]),
        (["model.init.num_kv_heads=3"], ["num_kv_heads"]),
        (["reward.fn=nowhere.py:score"], ["nowhere.py"]),
        (["reward.fn=mine.py:missing"], ["mine.py", "missing"]),
        (["workflow.path=mine.py:not_a_workflow"], ["not_a_workflow"]),
        (["name=thesis", "overwrite=true"], ["thesis", "choose another name"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_left(folder: Path, changes: list[str], said: list[str]) -> None:
    run = run_command(folder, "train", "--config-name", "quickstart", *TINY, *changes)
    assert run.status == 2, run.stdout + run.stderr
    lines = [line for line in run.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("areal-x: error: "), run.stderr
    for word in said:
        assert word in lines[0]
    assert (folder / "runs" / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_reward_that_hangs_is_a_counted_time_out(folder: Path) -> None:
    (folder / "runs" / "thesis" / "chapter.tex").unlink()
    (folder / "runs" / "thesis").rmdir()
    changes = ["reward.fn=mine.py:hangs_on_some", "reward.timeout_seconds=1", "reward.max_failure_rate=1.0"]
    run = run_command(folder, "train", "--config-name", "quickstart", *TINY, *changes, "evaluation.limit=4")
    assert run.status == 0, run.stderr
    last = [row for row in run.rows() if "reward/mean" in row][-1]
    assert last["episodes/scores/timeout"] > 0
    assert last["episodes/trained"] == 3 * 32


@pytest.mark.parametrize(("name", "said"), [("raises", "the scorer is broken"), ("segfaults", "SIGSEGV")])
def test_a_reward_that_always_fails_stops_the_run_with_its_reason(folder: Path, name: str, said: str) -> None:
    changes = [f"reward.fn=mine.py:{name}", "reward.failure_window=16", "evaluation.limit=1"]
    run = run_command(folder, "train", "--config-name", "quickstart", *TINY, *changes)
    assert run.status == 1, run.stdout + run.stderr
    assert said in run.stderr


def test_an_async_reward_with_parts(folder: Path) -> None:
    (folder / "runs" / "thesis" / "chapter.tex").unlink()
    (folder / "runs" / "thesis").rmdir()
    changes = ["reward.fn=mine.py:waits"]
    run = run_command(folder, "train", "--config-name", "quickstart", *TINY, *changes)
    assert run.status == 0, run.stderr
    row = next(row for row in run.rows() if "reward/mean" in row)
    assert (row["reward/mean"], row["reward/format"], row["reward/accuracy"]) == (0.5, 1.0, 0.0)


def wait_for(process: subprocess.Popen[str], text: str, seconds: float = 400.0) -> None:
    """Read the process's lines up to one with ``text``; the test's own deadline bounds the wait."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    for line in process.stdout:
        if text in line:
            return
        assert time.monotonic() < deadline, f"no {text!r} in time"
    raise AssertionError(f"ended without {text!r}: {process.stderr.read() if process.stderr else ''}")


def start_endless(folder: Path, *changes: str) -> subprocess.Popen[str]:
    return start_command(
        folder, "train", "--config-name", "quickstart", *TINY, "train.total_steps=100000", "name=run", *changes
    )


def assert_files_are_whole(folder: Path) -> None:
    for name in ("metrics.jsonl", "trajectories.jsonl", "timeline.jsonl"):
        read_rows(folder / "runs" / "run" / name)


@pytest.mark.parametrize(
    ("moment", "changes", "signals"),
    [
        ("supervised steps", ["sft.enabled=true", "sft.steps=100000"], [signal.SIGINT]),
        ("2/100000", [], [signal.SIGINT]),
        ("2/100000", [], [signal.SIGINT, signal.SIGINT]),
        ("2/100000", [], [signal.SIGTERM]),
    ],
)
def test_an_interrupt_ends_everything_within_seconds(
    tmp_path: Path, moment: str, changes: list[str], signals: list[signal.Signals]
) -> None:
    process = start_endless(tmp_path, *changes)
    try:
        wait_for(process, moment)
        family = psutil.Process(process.pid).children(recursive=True)
        started = time.monotonic()
        for number in signals:
            if number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
        assert time.monotonic() - started < 60
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr
        assert not psutil.wait_procs(family, timeout=60)[1], "a process was left behind"
        assert_files_are_whole(tmp_path)
        assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["status"] == "interrupted"
        assert run_command(tmp_path, "report", "runs/run").status == 0
    finally:
        process.kill()


def test_a_killed_engine_ends_the_run(tmp_path: Path) -> None:
    process = start_endless(tmp_path)
    try:
        wait_for(process, "2/100000")
        family = psutil.Process(process.pid).children(recursive=True)
        (engine,) = [child for child in family if "areal_x.engine" in " ".join(child.cmdline())]
        engine.kill()
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 1, stderr
        assert "engine" in stderr.splitlines()[-1]
        assert not psutil.wait_procs(family, timeout=60)[1], "a process was left behind"
        assert_files_are_whole(tmp_path)
    finally:
        process.kill()
