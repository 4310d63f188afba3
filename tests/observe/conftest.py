"""Fixtures of the observe tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    """A module beside this file; the tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def write_synthetic_run() -> Callable[..., Path]:
    """``write_synthetic_run(run_dir, steps=100, evaluate=True, hostile=True, finish=True)`` of ``synthetic_run.py``."""
    return _load("synthetic_run").write_synthetic_run


@pytest.fixture(scope="session")
def chromium() -> ModuleType:
    """The module ``chromium.py``."""
    return _load("chromium")


@pytest.fixture(scope="session")
def whole_run(write_synthetic_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 60 steps with hostile model text, without its report."""
    return write_synthetic_run(tmp_path_factory.mktemp("runs") / "whole", steps=60)
