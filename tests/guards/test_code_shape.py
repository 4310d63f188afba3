"""Sizes, exported names and constructs that the package keeps out."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

from checkout import ROOT, module_name, modules, relative, tree

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

LONG_FILES: dict[str, str] = {}
"""Files that may be longer, each with the reason."""

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions (``file::name``) that may be longer, each with the reason."""

BROAD_HANDLERS: dict[str, str] = {}
"""Files that catch everything at a named boundary, each with the boundary's name."""

PICKLE_FILES: dict[str, str] = {}
"""Files that may unpickle: only what passes between a process and its own children."""

NO_EXPORTS = {"areal_x", "areal_x.api", "areal_x.launch"}
"""Packages whose ``__init__`` exports nothing, so that importing them costs nothing."""


def everywhere(find: Callable[[Path], Iterator[str]]) -> list[str]:
    """What a rule finds in each module of the package, with the file's name before it."""
    return [f"{relative(path)}{found}" for path in modules() for found in find(path)]


def long_file(path: Path) -> Iterator[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > MAX_FILE_LINES and relative(path) not in LONG_FILES:
        yield f": {lines} lines"


def long_functions(path: Path) -> Iterator[str]:
    """Functions whose code, without signature and docstring, is too long to read at once."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            assert body[-1].end_lineno is not None
            lines = body[-1].end_lineno - body[0].lineno + 1
            if lines > MAX_FUNCTION_LINES and f"{relative(path)}::{node.name}" not in LONG_FUNCTIONS:
                yield f":{node.lineno}: {node.name} has {lines} lines"


def exported(path: Path) -> list[str] | None:
    """The names of ``__all__`` as the file writes them, or None."""
    for node in tree(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            return list(ast.literal_eval(node.value))
    return None


def is_sorted(names: list[str]) -> bool:
    """Sorted as a whole, or constants, classes and functions each; capitals before or among small letters."""

    def kind(name: str) -> int:
        return 0 if name.isupper() else 1 if name[0].isupper() else 2

    orders = [lambda n: n, str.lower, lambda n: (kind(n), n), lambda n: (kind(n), n.lower())]
    return any(names == sorted(names, key=order) for order in orders)


def unlisted_names(path: Path) -> Iterator[str]:
    names = exported(path)
    if names is None:
        if module_name(path) not in NO_EXPORTS:
            yield ": no __all__"
        return
    if not is_sorted(names) or len(set(names)) != len(names):
        yield f": __all__ is not sorted: {names}"
    module = importlib.import_module(module_name(path))
    for name in names:
        if not hasattr(module, name):
            yield f": __all__ names {name}, which does not exist"


def test_files_are_short() -> None:
    assert not everywhere(long_file)


def test_functions_are_short() -> None:
    assert not everywhere(long_functions)


def test_public_names_are_listed() -> None:
    assert not everywhere(unlisted_names)


def test_modules_say_what_they_are() -> None:
    assert not everywhere(lambda path: iter(() if ast.get_docstring(tree(path)) else (": no docstring",)))


def broad_handlers(path: Path) -> Iterator[str]:
    """Handlers of everything that do not raise it again."""
    broad = {"Exception", "BaseException", "ExceptionGroup", "BaseExceptionGroup"}
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {getattr(one, "id", getattr(one, "attr", "")) for one in caught if one is not None}
        raises_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if (names & broad or node.type is None) and not raises_again:
            yield f":{node.lineno}: catches {', '.join(sorted(names)) or 'everything'}"


def test_errors_are_caught_by_name() -> None:
    assert not [found for found in everywhere(broad_handlers) if found.partition(":")[0] not in BROAD_HANDLERS]


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


def unpickling(path: Path) -> Iterator[str]:
    names = {"pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.loads", "marshal.loads"}
    yield from (f":{call.lineno}: {name}" for name, call in calls(path) if name in names)


def evaluation(path: Path) -> Iterator[str]:
    forbidden = {"eval", "exec", "parse_expr", "sympify", "sympy.sympify", "os.system", "os.popen"}
    for name, call in calls(path):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        shell, only_weights = keywords.get("shell"), keywords.get("weights_only")
        if name in forbidden or (isinstance(shell, ast.Constant) and shell.value):
            yield f":{call.lineno}: {name}"
        if name == "torch.load" and not (isinstance(only_weights, ast.Constant) and only_weights.value is True):
            yield f":{call.lineno}: torch.load without weights_only=True"


def test_nothing_is_evaluated() -> None:
    assert not everywhere(evaluation)


def test_only_named_files_unpickle() -> None:
    assert not [found for found in everywhere(unpickling) if found.partition(":")[0] not in PICKLE_FILES]


def forgotten_tasks(path: Path) -> Iterator[str]:
    """A task that is made as a bare statement: nobody awaits it, and it may be collected."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = ast.unparse(node.value.func)
            if name.endswith(
                (".ensure_future", "asyncio.create_task", "loop.create_task", "get_running_loop().create_task")
            ):
                yield f":{node.lineno}: {name}"


def test_no_task_is_forgotten() -> None:
    assert not everywhere(forgotten_tasks)


def test_tables_of_exceptions_name_what_exists() -> None:
    for table in (LONG_FILES, LONG_FUNCTIONS, BROAD_HANDLERS, PICKLE_FILES):
        for entry, reason in table.items():
            assert reason and (ROOT / entry.partition("::")[0]).is_file(), entry
    assert not [name for name in LONG_FILES if len((ROOT / name).read_text().splitlines()) <= MAX_FILE_LINES]
    assert not [name for name in BROAD_HANDLERS if not list(broad_handlers(ROOT / name))]
    assert not [name for name in PICKLE_FILES if not list(unpickling(ROOT / name))]
