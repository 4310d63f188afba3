"""Imports go down only, and the contracts and the command line stay light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import module_name, modules, relative, tree

ALLOWED = {
    "process_pool": set(),
    "api": {"process_pool"},
    "reward": {"api", "process_pool"},
    "workflow": {"api"},
    "engine": {"api", "process_pool"},
    "rollout": {"api"},
    "observe": {"api"},
    "trainer": {"api", "process_pool", "reward", "workflow", "engine", "rollout", "observe"},
    "launch": {"api", "process_pool", "reward", "workflow", "engine", "rollout", "observe", "trainer"},
    "cli": {"api", "process_pool", "reward", "workflow", "engine", "rollout", "observe", "trainer", "launch"},
    "__init__": set(),
}
"""What each package of areal_x may import. ``reward``, ``workflow`` and ``engine`` meet in ``api`` only."""

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "rich", "hydra", "math_verify", "openai", "aiohttp")


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports, at its top or inside a function, with the line."""
    found = []
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, node.module] if node.module else base)
            found += [(f"{name}.{alias.name}" if name == "areal_x" else name, node.lineno) for alias in node.names]
    return found


def layer(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_package_has_a_place() -> None:
    assert {layer(module_name(path)) for path in modules()} <= set(ALLOWED)


def wrong_imports(path: Path) -> list[str]:
    own = layer(module_name(path))
    may = {own, "__init__", *ALLOWED[own]}
    return [
        f"{relative(path)}:{line} imports {name}"
        for name, line in imports(path)
        if name.split(".")[0] == "areal_x" and layer(name) not in may
    ]


def test_imports_go_down_only() -> None:
    assert not [wrong for path in modules() for wrong in wrong_imports(path)]


def test_the_pool_stands_on_the_standard_library_alone() -> None:
    for path in modules():
        if layer(module_name(path)) == "process_pool":
            names = {name.split(".")[0] for name, _ in imports(path)} - {"areal_x"}
            assert names <= set(sys.stdlib_module_names), relative(path)


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "module",
    [f"areal_x.api.{path.stem}" for path in modules() if path.parent.name == "api" and path.stem != "__init__"],
)
def test_contracts_are_light(module: str) -> None:
    assert not loaded_after(f"import {module}") & set(HEAVY)


def test_the_command_line_and_the_data_sets_need_no_torch() -> None:
    heavy = {"torch", "transformers", "datasets", "matplotlib"}
    assert (
        not loaded_after("import areal_x.launch.sweep, areal_x.launch.checked, areal_x.rollout.dataset, areal_x.cli")
        & heavy
    )


def processor_seconds(*arguments: str) -> float:
    """Of one run of Python: what the wall clock shows on an idle machine.

    NumPy's threads of linear algebra, which only spin as they start beside the imports, are left out.
    """
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command, nowhere = [sys.executable, *arguments], subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


OTHERS_IMPORTS, OTHERS_SECONDS = "import asyncio, inspect, json, numpy, yaml", 0.1
"""Nothing of ours, and the time that it takes where the limits below hold as they stand: a slower machine has more."""


CONTRACTS = (
    "import areal_x.api, areal_x.api.config, areal_x.api.records, areal_x.api.reward_api, areal_x.api.config_checks"
)
WRONG_KEY = (
    "import areal_x.cli; assert areal_x.cli.main(['train', '--config-name', 'quickstart', 'train.bach_size=3']) == 2"
)


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [(0.3, ["-c", CONTRACTS]), (0.7, ["-m", "areal_x.cli", "--help"]), (1.0, ["-c", WRONG_KEY])],
    ids=["contracts", "help", "wrong key"],
)
def test_what_must_be_quick_is_quick(limit: float, arguments: list[str]) -> None:
    least = others = float("inf")
    for run in range(25):
        others = min(others, processor_seconds("-c", OTHERS_IMPORTS))
        least = min(least, processor_seconds(*arguments))
        if run >= 4 and least < limit * max(1.0, others / OTHERS_SECONDS):
            return
    pytest.fail(f"{least:.2f} s, where the imports of others take {others:.2f} s")
