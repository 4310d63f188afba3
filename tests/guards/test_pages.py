"""The pages: the same set in both languages, one table of contents each, in the same order, and no dead link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkout import ROOT, relative, repository_files

DOCS = ROOT / "docs"
LANGUAGES = ("en", "zh")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)


def pages(language: str) -> list[str]:
    folder = DOCS / language
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))


def links(path: Path) -> list[str]:
    return LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8")))


def contents(language: str) -> list[str]:
    """The pages that the language's table of contents names, each at its first mention."""
    targets = [link.partition("#")[0] for link in links(DOCS / language / "index.md")]
    own = [target for target in targets if target.endswith(".md") and not target.startswith(("..", "http"))]
    return list(dict.fromkeys(own))


def test_both_languages_have_the_same_pages() -> None:
    assert pages("en") == pages("zh")
    assert "index.md" in pages("en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_table_of_contents_names_every_page(language: str) -> None:
    assert sorted([*contents(language), "index.md"]) == pages(language)


def test_both_tables_of_contents_have_the_same_order() -> None:
    assert contents("en") == contents("zh")


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_have_the_same_code_and_headings(language: str) -> None:
    """A page and its translation differ in words alone: as many headings of each level, as many code blocks."""

    def shape(path: Path) -> list[str]:
        text = path.read_text(encoding="utf-8")
        marks = re.findall(r"^#{1,4}(?= )", FENCE.sub("", text), re.MULTILINE)
        return [*marks, *re.findall(r"^```(\w+)", text, re.MULTILINE)]

    for page in pages(language):
        assert shape(DOCS / "en" / page) == shape(DOCS / "zh" / page), page


def markdown_files() -> list[Path]:
    return [path for path in repository_files() if path.suffix == ".md"]


def test_links_lead_somewhere() -> None:
    dead = [
        f"{relative(path)}: {link}"
        for path in markdown_files()
        for link in links(path)
        if not link.startswith(("http://", "https://", "mailto:", "#"))
        and not (path.parent / link.partition("#")[0]).exists()
    ]
    assert not dead
