"""Pages agree with the code and with each other: the tables of fields, the shown configurations, the shared code."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from areal_x.launch.compose import ConfigSource, compose_tree

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = sorted(path.relative_to(DOCS / "en").as_posix() for path in (DOCS / "en").rglob("*.md"))


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("configuration_tables", DOCS / "configuration_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_tables_of_fields_are_those_of_the_dataclasses(language: str) -> None:
    text = (DOCS / language / "configuration.md").read_text(encoding="utf-8")
    assert tables().rendered(text, language) == text, "run: python docs/configuration_tables.py"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_field_has_a_meaning_in_the_page_s_language(language: str) -> None:
    module = tables()
    text = (DOCS / language / "configuration.md").read_text(encoding="utf-8")
    named = re.findall(r"<!-- fields of (\w+), under", text)
    known = [name for name in module.definitions.__all__ if name.endswith("Config")]
    assert sorted(named) == sorted(known)
    meanings = module._meanings(text)
    for key, meaning in meanings.items():
        assert meaning, key
        is_chinese = re.search(r"[\u4e00-\u9fff]", meaning) is not None
        assert is_chinese == (language == "zh") or re.fullmatch(r"[`\w、，或。 ]+", meaning), (key, meaning)


@pytest.mark.parametrize("page", PAGES)
def test_a_translation_shows_the_same_code(page: str) -> None:
    english, chinese = (
        BLOCK.findall((DOCS / language / page).read_text(encoding="utf-8")) for language in ("en", "zh")
    )
    assert english == chinese


def shown_configs() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for language, code in BLOCK.findall((DOCS / "en" / page).read_text(encoding="utf-8")):
            if language == "yaml":
                found.append((page, code))
    return found


@pytest.mark.parametrize(("page", "code"), shown_configs())
def test_shown_configurations_compose(page: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "exp.yaml"
    if "defaults" not in yaml.safe_load(code):
        code = "defaults: [gsm8k, _self_]\n" + code
    file.write_text(code)
    compose_tree(ConfigSource.file(file), [])


def test_the_readme_shows_the_example_that_can_be_run() -> None:
    (shown,) = [code for language, code in BLOCK.findall((ROOT / "README.md").read_text()) if language == "python"]
    assert (ROOT / "examples" / "own_reward.py").read_text().endswith(shown)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_benchmark_is_on_its_page(language: str) -> None:
    page = (DOCS / language / "benchmarks.md").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOT / "benchmarks").glob("bench_*.py") if f"`{path.name}`" not in page]
    assert not missing


def test_every_shipped_config_and_reward_is_on_a_page() -> None:
    from areal_x.launch.config_files import config_names
    from areal_x.reward import list_rewards

    text = "".join((DOCS / "en" / page).read_text(encoding="utf-8") for page in PAGES)
    assert not [name for name in config_names() if f"--config-name {name}" not in text]
    assert not [entry.name for entry in list_rewards() if f"`{entry.name}`" not in text]


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#{1,4} (.+)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_into_a_page_find_their_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert anchor in slugs(page.parent / target if target else page), f"{target}#{anchor}"


METRIC = re.compile(r"`((?:reward|eval|staleness|rollout|episodes|outcome|train|perf)/[\w/<>.]+)`")


@pytest.mark.parametrize("page", PAGES)
def test_metrics_on_a_page_are_written_somewhere(page: str) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "areal_x").rglob("*.py"))
    text = (DOCS / "en" / page).read_text(encoding="utf-8")
    assert set(METRIC.findall(text)) == set(METRIC.findall((DOCS / "zh" / page).read_text(encoding="utf-8")))
    for name in METRIC.findall(text):
        prefix, _, last = name.partition("<")[0].rstrip(".").rpartition("/")
        # Written out, or made of a family (`train/{name}`) and a last part that is written out.
        is_of_a_family = f"{prefix}/{{" in source and (not last or f'"{last}"' in source)
        assert f'"{name}"' in source or is_of_a_family, name
