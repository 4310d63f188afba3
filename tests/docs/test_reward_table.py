"""The pages' table of built-in rewards is the registry's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from areal_x.reward import list_rewards

DOCS = Path(__file__).resolve().parents[2] / "docs"
LANGUAGES = ("en", "zh")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reward_table", DOCS / "reward_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(language: str) -> list[list[str]]:
    page = (DOCS / language / "rewards" / "built_in.md").read_text(encoding="utf-8")
    table = page.partition("<!-- built-in rewards -->")[2].partition("<!-- end of built-in rewards -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_table_is_the_registry(language: str) -> None:
    entries = [entry for entry in list_rewards() if entry.is_builtin]
    assert [row[0] for row in rows(language)] == [f"`{entry.name}`" for entry in entries]
    for row, entry in zip(rows(language), entries, strict=True):
        assert re.findall(r"`(.+?)`", row[1]) == list(entry.datasets)
        assert all(row[2:]), f"{entry.name} says nothing of what it extracts or returns"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_generator_has_been_run(language: str) -> None:
    text = (DOCS / language / "rewards" / "built_in.md").read_text(encoding="utf-8")
    assert generator().rendered(text, language) == text, "run: python docs/reward_table.py"


def test_the_chinese_rows_are_translated() -> None:
    ours = {row[0]: row for row in rows("en")}
    for name, row in {row[0]: row for row in rows("zh")}.items():
        assert row[2] != ours[name][2] and re.search(r"[\u4e00-\u9fff]", row[2]), f"translate the row {name}"
