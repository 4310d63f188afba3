"""Model text is never run: no module of the rewards evaluates, compiles, unpickles or starts a program, but for a few.

Imports and calls are both looked at, so that ``from builtins import eval`` or ``subprocess.run`` under another name is
found, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import PACKAGE, relative, tree

CHILD_FILES: dict[str, str] = {
    "areal_x/reward/math/child_guard.py": "evaluates in a forked child, without builtins, behind an audit hook",
    "areal_x/reward/math/slime_grader.py": "parses for SymPy in the same child",
    "areal_x/reward/sandbox/child/": "runs programs in the sandbox, which is what it is for",
}
"""Files that may do it, each with the reason; a folder (with a slash at its end) stands for all files in it."""

CALLS = {
    *("eval", "exec", "compile", "__import__", "parse_expr", "sympify", "lambdify", "S", "literal_eval"),
    *("system", "popen", "spawnv", "spawnvp", "spawnl", "execv", "execve", "execvp", "execvpe", "posix_spawn"),
    *("run_path", "run_module", "exec_module"),
}
"""Last parts of the names of calls that run text or start programs. ``re.compile`` is no such call."""

MODULES = {"subprocess", "pickle", "cloudpickle", "dill", "marshal", "shelve", "code", "codeop", "runpy", "pty"}
FORBIDDEN_IMPORTS = {
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("os", "system"),
    ("os", "popen"),
    ("sympy", "sympify"),
    ("sympy", "S"),
    ("sympy", "lambdify"),
    ("sympy", "parse_expr"),
    ("sympy.parsing", "parse_expr"),
    ("sympy.parsing.sympy_parser", "parse_expr"),
}


def reward_files() -> list[Path]:
    """Every module of the rewards, without those that are excepted by name."""
    files = sorted(path for path in (PACKAGE / "reward").rglob("*.py") if "__pycache__" not in path.parts)
    return [path for path in files if not is_excepted(relative(path))]


def is_excepted(name: str) -> bool:
    return any(name == row or (row.endswith("/") and name.startswith(row)) for row in CHILD_FILES)


def running(module: ast.Module) -> Iterator[str]:
    """What a module does of it: ``line: what``."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: import {one.name}" for one in node.names if one.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            top = (node.module or "").split(".")[0]
            for one in node.names:
                if top in MODULES or (node.module, one.name) in FORBIDDEN_IMPORTS:
                    yield f"{node.lineno}: from {node.module} import {one.name}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.rpartition(".")[2] in CALLS and (not name.endswith(".compile") or name == "builtins.compile"):
                yield f"{node.lineno}: {name}"
        elif isinstance(node, ast.Name) and node.id in {"eval", "exec", "__import__", "__builtins__"}:
            yield f"{node.lineno}: {node.id}"


def test_rewards_run_no_text() -> None:
    found = {relative(path): list(running(tree(path))) for path in reward_files()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_each_exception_is_still_needed() -> None:
    for row in CHILD_FILES:
        path = PACKAGE.parent / row
        files = sorted(path.rglob("*.py")) if row.endswith("/") else [path]
        assert any(list(running(tree(file))) for file in files), f"{row} runs nothing; take its row out"


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "f = eval",
        "builtins.exec(text)",
        "from builtins import eval as e",
        "import subprocess",
        "from pickle import loads",
        "import pickle as p",
        "os.system(text)",
        "sympy.sympify(text)",
        "from sympy.parsing.sympy_parser import parse_expr as p",
        "ast.literal_eval(text)",
        "__import__(text)",
        "compile(text, '', 'eval')",
        "importlib.util.module_from_spec(s).loader.exec_module(m)",
        "os.execv(text, [])",
    ],
)
def test_the_lint_sees_each_way_of_running_text(source: str) -> None:
    assert list(running(ast.parse(source)))


def test_the_lint_lets_harmless_code_pass() -> None:
    assert not list(running(ast.parse("re.compile(text)\njson.loads(text)\nmath.sqrt(2)\nfrom sympy import simplify")))
