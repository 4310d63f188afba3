"""Writes the tables of fields on the pages ``configuration.md`` from the dataclasses that define them.

Command:  python docs/configuration_tables.py

Key, type and default come from ``areal_x.api.config``, and the English meaning from the text below a field where there
is one. Every other meaning is kept as it stands on the page, so a page is translated in its place. A test compares.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from areal_x.api import config as definitions

PAGES = {language: Path(__file__).parent / language / "configuration.md" for language in ("en", "zh")}
HEADINGS = {
    "en": ("key", "type", "default", "meaning"),
    "zh": ("字段", "类型", "默认值", "含义"),
}
_TABLE = re.compile(r"(<!-- fields of (\w+), under (\S*) -->\n).*?(?=<!-- end of fields -->)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Field:
    """One row: the key as it is written in a file, its type, its default as YAML shows it, its docstring if any."""

    key: str
    type: str
    default: str
    docstring: str


def field_docstrings(cls: type) -> dict[str, str]:
    """The text below each field of a dataclass."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(str(below.value.value).split()).replace("``", "`")
    return found


def fields_of(class_name: str, prefix: str) -> list[Field]:
    """The rows of one dataclass; sections of their own are left out."""
    cls = getattr(definitions, class_name)
    docstrings = field_docstrings(cls)
    rows = []
    for field in dataclasses.fields(cls):
        value = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        if dataclasses.is_dataclass(value):
            continue
        types = ", ".join(f"`{'null' if part == 'None' else part}`" for part in str(field.type).split(" | "))
        rows.append(Field(f"{prefix}{field.name}", types, _shown(value), docstrings.get(field.name, "")))
    return rows


def _shown(value: Any) -> str:
    words = {None: "null", True: "true", False: "false", "???": "???"}
    is_word = isinstance(value, str | bool) or value is None
    return f"`{words.get(value, value) if is_word else value}`"


def _meanings(table: str) -> dict[str, str]:
    """What the page says now about each key."""
    rows = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| `"))
    return {cells[0].strip().strip("`"): cells[-1].strip() for cells in rows}


def rendered(text: str, language: str) -> str:
    """The page with all its tables written anew."""

    def table(match: re.Match[str]) -> str:
        kept = _meanings(match.group(0))
        heading = HEADINGS[language]
        lines = [f"| {' | '.join(heading)} |", f"| {' | '.join('---' for _ in heading)} |"]
        for field in fields_of(match.group(2), "" if match.group(3) == "top" else match.group(3)):
            meaning = field.docstring.replace("|", r"\|") if language == "en" else ""
            meaning = meaning or kept.get(field.key, "") or field.docstring.replace("|", r"\|")
            lines.append(f"| `{field.key}` | {field.type} | {field.default} | {meaning} |")
        return match.group(1) + "\n" + "\n".join(lines) + "\n\n"

    return _TABLE.sub(table, text)


if __name__ == "__main__":
    for language, page in PAGES.items():
        page.write_text(rendered(page.read_text(encoding="utf-8"), language), encoding="utf-8")
