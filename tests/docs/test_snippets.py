"""Runs what the pages show: every Python block, and every ``areal-x`` command as far as the parser and a dry run go.

The Python blocks of one page share a namespace, in their order, in an empty folder. What cannot run is fenced as
another language (``text``, ``console``). A page that needs a file makes it in an earlier block.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from areal_x.cli import build_parser, main
from areal_x.engine.init_model import init_model
from areal_x.reward import list_rewards, registry

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.is_file())
DATA_KEYS = ("data.path", "data.eval_path", "sft.path", "preferences.path", "preferences.eval_path")
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """Each fenced block of one of the languages, with the line on which its code begins."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start()) + 2, match.group(2))
        for match in BLOCK.finditer(text)
        if match.group(1) in languages
    ]


def commands() -> list[tuple[str, list[str]]]:
    """Every ``areal-x`` and ``make`` command of the pages, as words."""
    found = []
    for page in PAGES:
        for line, code in blocks(page, "bash", "sh", "shell"):
            for command in code.replace("\\\n", " ").splitlines():
                words = shlex.split(command, comments=True)
                while words and "=" in words[0]:
                    words = words[1:]
                if words and words[0] in ("areal-x", "make"):
                    found.append((f"{page.relative_to(ROOT)}:{line}: {' '.join(words)}", words))
    return found


def with_python() -> list[Path]:
    return [page for page in PAGES if blocks(page, "python", "py")]


@pytest.mark.parametrize("page", with_python(), ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # What a page registers ends with the page: its translation registers the same name again.
    list_rewards()
    for table in ("_entries", "_name_of_dataset"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    # A module of its own, known to `sys.modules`, so that functions of the page can be pickled by reference.
    name = re.sub(r"\W", "_", f"page_{page.relative_to(ROOT)}")
    module = type(sys)(name)
    monkeypatch.setitem(sys.modules, name, module)
    for line, source in blocks(page, "python", "py"):
        # Line numbers of the page, for tracebacks. A page may await at its top, as a notebook does.
        padded = "\n" * (line - 1) + source
        code = compile(padded, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        result = eval(code, module.__dict__)
        if inspect.iscoroutine(result):
            asyncio.run(result)


@pytest.mark.parametrize(("place", "words"), commands(), ids=[place for place, _ in commands()])
def test_commands_exist(place: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "make":
        command = ["make", "--dry-run", "--directory", str(ROOT), *words[1:]]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, place
        return
    plain = [word for word in words[1:] if "=" not in word or word.startswith("-")]
    if {"-h", "--help"} & set(plain):
        return
    try:
        build_parser().parse_known_args(words[1:])
    except SystemExit:
        pytest.fail(f"{place} does not parse")
    if words[1] in ("train", "sft", "train-rm", "eval") and "--config-name" in words:
        _dry_run(place, words[1:], tmp_path, monkeypatch)


def _dry_run(place: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose the command's configuration, with stand-ins for the files that only a reader has."""
    monkeypatch.chdir(folder)
    row = {"question": "1+1?", "prompt": "1+1?", "answer": "2", "chosen": "2", "rejected": "3"}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words if "=" in word and word[0] != "-"}
    for key, value in given.items():
        if key in DATA_KEYS and value.endswith((".jsonl", "FILE")):
            words = [word for word in words if not word.startswith(f"{key}=")] + [f"{key}=train.jsonl"]
        if key == "model.path" and not re.fullmatch(r"[A-Z]\w+/[\w.-]+", value):
            words = [word for word in words if not word.startswith(f"{key}=")] + [f"{key}=stand-in"]
        if key in ("reward.fn", "reward.post_process", "workflow.path", "rollout.filter") and ".py:" in value:
            (folder / value.partition(":")[0]).parent.mkdir(parents=True, exist_ok=True)
            (folder / value.partition(":")[0]).touch()
    dry = [*words, *([] if "--dry-run" in words else ["--dry-run"])]
    if {"gsm8k", "gsm8k_checkpoint"} & set(words) and "model.path" not in given:
        dry.append("model.path=stand-in")
    if "model.path=stand-in" in dry:
        init_model(folder / "stand-in", tokenizer="characters", hidden_size=32, num_layers=1, max_length=32768)
    if {"rollout=vllm", "rollout=sglang"} & set(words):
        _server_stand_ins(folder, monkeypatch)
    assert main(dry) == 0, place


def _server_stand_ins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that says it has both servers, which no test here starts."""
    python = folder / "server-python"
    python.write_text('#!/bin/sh\necho \'{"vllm": "0.32.0", "sglang": "0.5.23"}\'\n')
    python.chmod(0o755)
    for variable in ("AREAL_X_VLLM_PYTHON", "AREAL_X_SGLANG_PYTHON"):
        monkeypatch.setenv(variable, str(python))


def test_the_pages_show_both_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make quickstart" in readme and "make test" in readme
