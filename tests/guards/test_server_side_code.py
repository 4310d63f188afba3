"""What runs inside a server's own environment imports only what is there; lists of packages name packages alone."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from checkout import PACKAGE, ROOT, module_name, modules, relative, tree
from test_import_direction import imports

INSIDE = {
    "areal_x.engine.servers.sglang_start": set(),
    "areal_x.engine.servers.vllm_key_guard": set(),
    "areal_x.engine.transfer.vllm_worker": {"numpy", "torch", "vllm"},
    # Not in a server's environment, but started for each server with the bare interpreter.
    "areal_x.engine.servers.guardian": set(),
}
"""Modules that a server's interpreter runs, each with the packages that it may import besides the standard library."""

MODULES = {module_name(path): path for path in modules()}
NAMES_INSIDE = re.compile(r"^(?:vllm|sglang)_(?:worker|start|key_guard|reload|extension)")
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+]*")


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a file imports, ``from package import module`` included, with their packages."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{relative(path)}: imports are absolute here"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parents = {".".join(parts[:n]) for name in found for parts in [name.split(".")] for n in range(1, len(parts) + 1)}
    return parents & MODULES.keys()


def closure(name: str) -> set[str]:
    """A module, what it imports of this package, and so on."""
    found: set[str] = set()
    pending = [name, *(name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1))]
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += imported_modules(MODULES[module])
    return found


def foreign(name: str, allowed: set[str]) -> list[str]:
    """Third-party imports below a module that it may not have."""
    usual = allowed | set(sys.stdlib_module_names) | {"areal_x"}
    return [
        f"{relative(MODULES[module])}:{line} imports {imported}"
        for module in sorted(closure(name))
        for imported, line in imports(MODULES[module])
        if imported.split(".")[0] not in usual
    ]


@pytest.mark.parametrize("name", INSIDE)
def test_what_runs_inside_a_server_imports_what_is_there(name: str) -> None:
    assert not foreign(name, INSIDE[name])


def test_the_worker_needs_no_other_part_of_the_package() -> None:
    """Contracts, configuration and engines need packages that servers do not have."""
    within = {"areal_x", "areal_x.engine"}
    outside = {
        module
        for module in closure("areal_x.engine.transfer.vllm_worker") - within
        if not module.startswith("areal_x.engine.transfer")
    }
    assert not outside


def test_what_is_run_by_its_path_needs_no_package_at_all() -> None:
    own = "areal_x.engine.servers.sglang_start"
    assert closure(own) <= {own, "areal_x", "areal_x.engine", "areal_x.engine.servers"}


@pytest.mark.parametrize("package", ["areal_x", "areal_x.engine", "areal_x.engine.servers", "areal_x.engine.transfer"])
def test_packages_around_it_import_nothing(package: str) -> None:
    assert not imports(MODULES[package])


def test_no_such_module_is_missing_here() -> None:
    named = {module_name(path) for path in (PACKAGE / "engine").rglob("*.py") if NAMES_INSIDE.match(path.name)}
    covered = set().union(*map(closure, INSIDE))
    assert named and named <= covered


def lists() -> list[Path]:
    return sorted((ROOT / "requirements").glob("*.txt"))


def test_the_guard_sees_an_import_below_another() -> None:
    """A replica imports the client, and the client aiohttp."""
    assert any("aiohttp" in wrong for wrong in foreign("areal_x.engine.servers.replica", {"numpy"}))


@pytest.mark.parametrize("path", lists(), ids=lambda path: path.name)
def test_lists_of_packages_hold_exact_versions_and_neither_hosts_nor_paths(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# ")]
    assert lines and not [line for line in lines if not PIN.fullmatch(line)]
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert len(names) == len(set(names))


def test_every_list_has_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in lists():
        assert f"build_environment.sh {path.stem} " in makefile
