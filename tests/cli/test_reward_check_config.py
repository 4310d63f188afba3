"""``areal-x reward test ./exp.yaml``: the rewards that a run of the file would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.errors import ConfigError
from areal_x.cli import main
from areal_x.launch.reward_check import check_reward_function

OWN = """
def scaled(completions, answer, scale=1.0):
    return {"points": scale * float(completions.endswith(answer.split()[-1])), "words": len(completions.split())}


def shortest(completions):
    return [-float(len(completion)) for completion in completions]


def fails(completions):
    return {}[completions]
"""
QUICK = ["--runs", "1", "--workers", "1", "--json", "report.json"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{n}+{n}=", "answer": f"{n} and {n} make {2 * n}.\n#### {2 * n}"} for n in range(11, 16)]
    for name in ("train.jsonl", "other.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(OWN)


def write(reward: str, data: str = "train.jsonl") -> str:
    text = f"defaults: [gsm8k, _self_]\ndata: {{path: {data}}}\nreward: {reward}\n"
    Path("exp.yaml").write_text(text)
    return "./exp.yaml"


def report() -> dict[str, Any]:
    read = json.loads(Path("report.json").read_text())
    assert isinstance(read, dict)
    return read


def test_a_single_reward_has_the_options_of_the_file(capsys: Any) -> None:
    config = write("{fn: own.py:scaled, kwargs: {scale: 2.0}, reward_key: points}")
    assert main(["reward", "test", config, *QUICK]) == 0
    assert report()["reward"] == "own.py:scaled" and report()["score"]["highest"] == 2.0
    assert "reward own.py:scaled on train.jsonl" in capsys.readouterr().out
    assert main(["reward", "test", config, "reward.kwargs.scale=3", "--data", "other.jsonl", *QUICK]) == 0
    assert report()["score"]["highest"] == 3.0 and report()["data"] == "other.jsonl"


def test_each_of_several_rewards_has_a_report(capsys: Any) -> None:
    config = write(
        "{rewards: {accuracy: {fn: gsm8k, weight: 0.8}, short: {fn: own.py:shortest, group: true}, "
        "bad: {fn: own.py:fails}}}"
    )
    assert main(["reward", "test", config, *QUICK]) == 1
    read = report()
    assert list(read) == ["accuracy", "short", "bad"]
    assert [read[name]["ok"] for name in read] == [True, True, False]
    assert read["short"]["outcomes"]["ok"] == 30
    printed = capsys.readouterr().out
    assert "reward accuracy: gsm8k on" in printed and "reward short: own.py:shortest on" in printed
    assert "group reward" in printed


@pytest.mark.parametrize(
    ("reward", "words", "expected"),
    [
        ("{fn: gsm9k}", [], "did you mean 'gsm8k'?"),
        ("{rewards: {a: {fn: length}}}", [], "reward.rewards.a"),
        ("{fn: gsm8k}", ["kwargs.scale=2"], "kwargs"),
        ("{fn: gsm8k}", ["--data", "nowhere.jsonl"], "no such file"),
    ],
)
def test_a_wrong_file_is_one_line_and_status_2(reward: str, words: list[str], expected: str, capsys: Any) -> None:
    assert main(["reward", "test", write(reward), *words]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.startswith("areal-x: error: ") and error.count("\n") == 1


def test_missing_files_and_missing_data_are_told(capsys: Any) -> None:
    assert main(["reward", "test", "nowhere.yaml"]) == 2
    assert "nowhere.yaml: no such file" in capsys.readouterr().err
    assert main(["reward", "test", "gsm8k"]) == 2
    assert "which data? add --data FILE" in capsys.readouterr().err


def test_a_notebook_is_told_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"is a configuration, no reward: give its reward\.fn"):
        check_reward_function("exp.yaml", "train.jsonl")
