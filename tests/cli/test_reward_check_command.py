"""``areal-x reward test``: its output, its files, and the exit status of each way to end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from areal_x.cli import main

FILE = Path(__file__).with_name("bad_rewards.py")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rows = [{"question": f"{n}+{n}=", "answer": f"{n} and {n} make {2 * n}.\n#### {2 * n}"} for n in range(11, 16)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "train.jsonl"


def test_a_good_reward_ends_with_0_and_shows_its_figures(data: str, capsys: Any) -> None:
    assert main(["reward", "test", f"{FILE}:good", "--data", data, "--limit", "3", "--json", "report.json"]) == 0
    printed = capsys.readouterr().out
    assert "3 items, 21 completions, 2 runs" in printed and "✓ no mistakes found" in printed
    for section in ("outcome", "completion", "score", "part ", "time of a call", "agreement", "2 runs"):
        assert section in printed
    report = json.loads(Path("report.json").read_text())
    assert report["ok"] and report["outcomes"]["ok"] == 42 and report["agreement"] == {"agreed": 21, "known": 21}


def test_an_error_ends_with_1_and_shows_the_first_traceback(data: str, capsys: Any) -> None:
    assert main(["reward", "test", f"{FILE}:fails_on_empty", "--data", data]) == 1
    printed = capsys.readouterr().out
    assert "first error: item 0, empty" in printed and "in fails_on_empty" in printed and "1 error" in printed
    assert "✗ error: raises" in printed


def test_a_warning_ends_with_1_only_when_asked_to(data: str, capsys: Any) -> None:
    words = ["reward", "test", f"{FILE}:swallows", "--data", data, "--workers", "1"]
    assert main(words) == 0 and main([*words, "--strict"]) == 1
    assert "! warning: swallowed_exception" in capsys.readouterr().out


def test_options_of_the_reward_are_overrides(data: str) -> None:
    words = ["reward", "test", f"{FILE}:scaled", "kwargs.scale=0.25", "--data", data, "--json", "report.json"]
    assert main([*words, "--threshold", "0.2", "--runs", "1"]) == 0
    assert json.loads(Path("report.json").read_text())["score"]["highest"] == 0.25


def test_a_built_in_reward_is_named(data: str, capsys: Any) -> None:
    assert main(["reward", "test", "gsm8k", "--data", data]) == 0
    composite = ["composite", "kwargs.parts={format: 0.2, accuracy: 0.8}", "--dataset", "gsm8k"]
    main(["reward", "test", *composite, "--data", data])
    printed = capsys.readouterr().out
    assert "reward composite" in printed and "accuracy" in printed


def test_completions_of_a_file_are_compared_with_its_scores(data: str, capsys: Any) -> None:
    Path("scored.jsonl").write_text(
        '{"completion": "#### 22", "expected": 1}\n{"completion": "#### 24", "expected": 0}\n'
    )
    assert main(["reward", "test", "gsm8k", "--data", data, "--completions", "scored.jsonl"]) == 1
    printed = capsys.readouterr().out
    assert "item 1, file: expected 0, scored 1" in printed and "error: disagrees_with_file" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gsm9k"], "did you mean 'gsm8k'?"),
        (["nowhere.py:score"], "there is no file"),
        ([f"{FILE}:NeedsAKey"], "cannot be made with options (none): KeyError: 'A_KEY_THAT_NOBODY_HAS'"),
        (["gsm8k", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["gsm8k", "--prompt-key", "text"], "--prompt-key names the prompt's column"),
        (["gsm8k", "--completions", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["gsm8k", "scale=3"], "options of the reward are written kwargs.key=value"),
        (["gsm8k", "kwargs.nope=3"], "reward.kwargs.nope is not an option"),
        (["gsm8k", "--limit", "0"], "limit=0 must be at least 1"),
        (["gsm8k", "--json", "no/such/folder.json"], "no/such/folder.json: cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(data: str, words: list[str], expected: str, capsys: Any) -> None:
    given = [] if "nowhere.jsonl" in words and "--data" in words else ["--data", data]
    assert main(["reward", "test", *words, *given]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.startswith("areal-x: error: ") and error.count("\n") == 1


def start(data: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "areal_x.cli", "reward", "test", f"{FILE}:{name}", "--data", data]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_as_a_process(data: str) -> None:
    out, error = start(data, "anonymous").communicate(timeout=100)
    assert "error: cannot_start" in out and error == ""


TYPED = """
import asyncio
from areal_x.launch.reward_check import check_reward_function

def typed(completions, answer):
    return float(completions == answer)

async def cell():
    return check_reward_function(typed, [{"prompt": "1+1", "answer": "2 of them"}], workers=1)

report = asyncio.run(cell())
print(report.findings, report.scores)
"""


def test_a_function_typed_at_a_prompt() -> None:
    result = subprocess.run([sys.executable, "-c", TYPED], capture_output=True, text=True, timeout=100, check=False)
    assert (result.stdout, result.stderr) == ("[] [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]\n", "")


def test_an_interrupt_ends_it_and_its_workers(data: str) -> None:
    process = start(data, "slow")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not children.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    (helper,) = children.read_text().split()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 130 and error == "areal-x: interrupted\n"
    while Path(f"/proc/{helper}").exists():
        assert time.monotonic() < deadline + 60, f"process {helper} is left"
        time.sleep(0.02)
