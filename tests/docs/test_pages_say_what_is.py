"""Pages agree with the code and with each other: the tables of fields, the shown configurations, the shared code."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from areal_x.api.import_paths import is_import_path, split_library
from areal_x.launch.compose import ConfigSource, compose_config, compose_tree, to_yaml
from areal_x.reward.configured import reward_function
from areal_x.rollout.dataset import dataset_name

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


@pytest.mark.parametrize(("page", "code"), [shown for shown in shown_configs() if "reward:" in shown[1]])
def test_shown_rewards_are_built(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the values of their keys, not their names alone. Functions of a reader's own are stand-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for own, name in re.findall(r"(\w+\.py)::?(\w+)", code):
        with (tmp_path / own).open("a") as file_of_own:
            file_of_own.write(f"def {name}(*args, **kwargs):\n    return 0.0\n")
    file = tmp_path / "exp.yaml"
    file.write_text(code if "defaults" in yaml.safe_load(code) else "defaults: [gsm8k, _self_]\n" + code)
    has_data = "path" in yaml.safe_load(code).get("data", {})
    config = compose_config(ConfigSource.file(file), [] if has_data else ["data.path=gsm8k/train.jsonl"])
    for name, part in (config.reward.rewards or {"": config.reward}).items():
        spec = split_library(part.fn or "")[1]
        if is_import_path(spec) and not spec.startswith("areal_x.") and not Path(spec.rpartition(":")[0]).is_file():
            continue
        assert callable(reward_function(name, part, dataset_name(config.data))), f"{page}: {name}"


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


@pytest.mark.parametrize("page", sorted((DOCS / "zh" / "rewards").glob("*.md")), ids=lambda page: page.name)
def test_chinese_reward_pages_keep_to_one_glossary(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for pattern, word in {"词元": "token", "题目|道题": "提示", "时限": "期限", "方框": "框", "判分": "评分"}.items():
        assert not re.search(pattern, text), f"write {word} instead of {pattern}"
    assert not re.search("回溯(?!的正则)", text), "write traceback; 回溯 is what a regular expression does"
    assert "不是故障" not in text, "write 失败, as failures.md does"


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


def algorithm_pages() -> list[str]:
    return [path.stem for path in sorted((ROOT / "configs" / "algorithm").glob("*.yaml"))]


@pytest.mark.parametrize("name", algorithm_pages())
def test_the_page_of_an_algorithm_shows_its_preset(name: str, tmp_path: Path) -> None:
    """Both as a whole configuration: what a preset sets and the page does not, or sets otherwise, would differ."""
    page = (DOCS / "en" / "algorithms" / f"{name}.md").read_text(encoding="utf-8")
    (shown,) = [code for language, code in BLOCK.findall(page) if language == "yaml"]
    file = tmp_path / "exp.yaml"
    file.write_text("defaults: [quickstart, _self_]\n" + shown)
    preset = compose_tree(ConfigSource.named("quickstart"), [f"algorithm={name}"])
    page_tree, preset_tree = (yaml.safe_load(to_yaml(tree)) for tree in (compose_tree(ConfigSource.file(file)), preset))
    for section in ("algorithm", "rollout", "reward"):
        assert page_tree[section] == preset_tree[section]
