"""Writes the table of built-in rewards on the pages ``rewards/built_in.md`` from the registry.

Command:  python docs/reward_table.py

Names and data sets come from the registry on both pages, and so does the English text. The Chinese text of a reward is
kept as it stands on its page, so the page is translated in its place. A test compares.
"""

from __future__ import annotations

import re
from pathlib import Path

from areal_x.reward import RewardEntry, list_rewards

PAGES = {language: Path(__file__).parent / language / "rewards" / "built_in.md" for language in ("en", "zh")}
HEADINGS = {
    "en": ("name", "data sets", "extracts", "returns"),
    "zh": ("名字", "数据集", "提取什么", "返回什么"),
}
_TABLE = re.compile(r"(<!-- built-in rewards -->\n).*?(?=<!-- end of built-in rewards -->)", re.DOTALL)


def cells_of(entry: RewardEntry) -> tuple[str, str, str, str]:
    """One row, safe in Markdown."""
    datasets = ", ".join(f"`{dataset}`" for dataset in entry.datasets)
    return f"`{entry.name}`", datasets, _text(entry.extracts), _text(entry.returns)


def _text(text: str) -> str:
    for mark in "|<*[":
        text = text.replace(mark, f"\\{mark}")
    return re.sub(r"\\boxed\{\w*\}", lambda match: f"`{match.group()}`", text)


def _rows(table: str) -> dict[str, list[str]]:
    rows = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| `"))
    return {cells[0].strip(): [cell.strip() for cell in cells] for cells in rows}


def rendered(text: str, language: str) -> str:
    """The page with its table written anew."""

    def table(match: re.Match[str]) -> str:
        kept = _rows(match.group())
        heading = HEADINGS[language]
        lines = [f"| {' | '.join(heading)} |", f"| {' | '.join('---' for _ in heading)} |"]
        for entry in list_rewards():
            if entry.is_builtin:
                cells = list(cells_of(entry))
                if language != "en" and cells[0] in kept:
                    cells[2:] = kept[cells[0]][2:]
                lines.append(f"| {' | '.join(cells)} |")
        return match.group(1) + "\n" + "\n".join(lines) + "\n\n"

    return _TABLE.sub(table, text)


if __name__ == "__main__":
    for language, page in PAGES.items():
        page.write_text(rendered(page.read_text(encoding="utf-8"), language), encoding="utf-8")
