"""What the repository's text must not hold: paths of one machine, hosts of package mirrors, notes to self."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from checkout import ROOT, modules, relative, repository_files

# Written in pieces, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(
    r"(?<![\w.:/-])/(?:" + "|".join(["work", "root", "home", "Users", "opt/" + "pypi"]) + r")/\w"
)
MIRRORS = re.compile("|".join(["--index" + "-url", "--extra-index" + "-url", "--find" + "-links", "trusted" + "-host"]))
REGISTRY_HOSTS = re.compile(
    r"(?:pypi|pythonhosted|artifactory|nexus|jfrog)\.(?:org|io|com|internal)|download\." + "pytorch"
)
NOTES = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")
BINARY = {".png", ".jpg", ".gif", ".ico", ".parquet", ".safetensors", ".woff2"}


def found(pattern: re.Pattern[str], skipped: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    places = []
    for path in repository_files():
        if path.suffix in BINARY or relative(path) in skipped:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            match = pattern.search(line)
            if match:
                places.append(f"{relative(path)}:{number}: {match.group()}")
    return places


def test_no_path_of_one_machine() -> None:
    assert not found(MACHINE_PATHS)


def test_no_package_registry() -> None:
    assert not found(MIRRORS) and not found(REGISTRY_HOSTS)


def test_no_notes_to_self() -> None:
    assert not found(NOTES)


def test_no_merge_marks_and_no_trailing_secrets() -> None:
    assert not found(re.compile(r"^(<{7}|>{7}) "))
    assert not found(re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9]{32,}|ghp_[A-Za-z0-9]{30,})\b"))


def test_large_files_stay_out() -> None:
    assert not [f"{relative(path)}" for path in repository_files() if path.stat().st_size > 2_000_000]


def test_importing_a_module_prints_nothing() -> None:
    """Only the command line and the benchmarks print; a library logs or returns."""
    allowed = {"areal_x/cli.py", "areal_x/launch/checked.py", "areal_x/launch/sweep.py"}
    printing = [
        f"{relative(path)}:{node.lineno}"
        for path in modules()
        if relative(path) not in allowed and not relative(path).startswith(("areal_x/observe/", "areal_x/trainer/"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and not any(keyword.arg == "file" for keyword in node.keywords)
    ]
    assert not printing


WARNING_TEST = """
import types, warnings
def test_warning():
    module = types.ModuleType("areal_x.some_module")
    exec("import warnings\\ndef warn():\\n    warnings.warn('of areal_x', UserWarning)", module.__dict__)
    module.warn()
"""


def test_a_warning_of_the_package_fails_a_test(tmp_path: Path) -> None:
    """The pytest configuration must turn warnings that areal_x raises into errors, submodules included."""
    (tmp_path / "test_warning.py").write_text(WARNING_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1 and "UserWarning: of areal_x" in result.stdout, result.stdout
