"""Every shipped config composes and passes its checks, and the wheel holds it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT

from areal_x.api.config_checks import check_config
from areal_x.launch.compose import ConfigSource, compose_config, compose_tree
from areal_x.launch.config_files import config_groups, config_header, config_names, find_config

PRESETS = [(group, preset) for group, presets in config_groups().items() for preset in presets]


@pytest.fixture
def stand_ins(tmp_path: Path) -> list[str]:
    """Overrides for what only the user has: a data file and a model."""
    data = tmp_path / "train.jsonl"
    data.write_text('{"question": "1+1?", "prompt": "1+1?", "answer": "2"}\n')
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return [f"data.path={data}", f"model.path={model}"]


@pytest.mark.parametrize("name", config_names())
def test_config_composes_and_passes_its_checks(name: str, stand_ins: list[str], tmp_path: Path) -> None:
    tree = compose_tree(ConfigSource.named(name))
    made = tree.model.init is not None
    config = compose_config(ConfigSource.named(name), [f"runs_dir={tmp_path}", *(stand_ins[:1] if made else stand_ins)])
    check_config(config)
    assert config.name == name


def test_only_the_data_may_be_left_open() -> None:
    from omegaconf import OmegaConf

    for name in config_names():
        assert OmegaConf.missing_keys(compose_tree(ConfigSource.named(name))) <= {"data.path"}, name


@pytest.mark.parametrize(("group", "preset"), PRESETS, ids=["/".join(pair) for pair in PRESETS])
def test_preset_composes(group: str, preset: str, tmp_path: Path) -> None:
    check_config(compose_config(ConfigSource.named("quickstart"), [f"{group}={preset}", f"runs_dir={tmp_path}"]))


def test_configs_are_sparse_and_say_what_they_do() -> None:
    for name in config_names():
        text = find_config(name).read_text(encoding="utf-8")
        header = config_header(find_config(name))
        assert "Hardware:" in header and "Command:" in header and f"--config-name {name}" in header, name
        assert len([line for line in text.splitlines() if line.strip() and not line.startswith("#")]) <= 60, name
    for group, preset in PRESETS:
        assert config_header(find_config(f"{group}/{preset}")), f"{group}/{preset}"


def test_configs_of_the_examples_compose() -> None:
    for path in sorted((ROOT / "examples").rglob("*.yaml")):
        if path.parent.name in config_groups():
            compose_tree(
                ConfigSource.file(next(path.parent.parent.glob("*.yaml"))), [f"{path.parent.name}={path.stem}"]
            )
        else:
            compose_tree(ConfigSource.file(path))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_the_configs_and_nothing_else_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"areal_x/configs/{path.relative_to(ROOT / 'configs').as_posix()}" in names
    assert "areal_x/py.typed" in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"areal_x"}
    package_data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "areal_x").rglob("*") if path.is_file()}
    assert {name for name in package_data if "__pycache__" not in name} <= names


def test_an_installed_wheel_finds_its_configs(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from areal_x.cli import main; import areal_x; "
        f"assert areal_x.__file__.startswith({str(tmp_path)!r}), areal_x.__file__; "
        "sys.exit(main(['train', '--config-name', 'quickstart', '--dry-run']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert "name: quickstart" in result.stdout
