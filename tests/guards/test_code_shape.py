"""Sizes, exported names and constructs that the package keeps out."""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from checkout import ROOT, module_name, modules, relative, tree
from test_reward_code import is_excepted

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

LONG_FILES: dict[str, str] = {}
"""Files that may be longer, each with the reason."""

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions (``file::name``) that may be longer, each with the reason."""

BROAD_HANDLERS: dict[str, str] = {
    "areal_x/api/reward_api.py::_await": "a user's reward coroutine",
    "areal_x/engine/inference/worker.py::main": "the engine's process",
    "areal_x/engine/ranks/rank_channel.py::travels": "an exception of any class, whose pickling runs its own code",
    "areal_x/engine/ranks/rank_host.py::outcome_of": "a rank: what it raises is raised again in the driver",
    "areal_x/launch/reward_check/check.py::_users_step": "the start() and close() of a user's reward",
    "areal_x/process_pool/lost_calls.py::encode_arguments": "a user's arguments, whose pickling runs user code",
    "areal_x/process_pool/worker.py::_body": "a user's value or exception, whose pickling and printing run user code",
    "areal_x/process_pool/worker.py::_serve": "a user's function",
    "areal_x/process_pool/worker_link.py::_value_result": "a user's value, whose unpickling runs user code",
    "areal_x/process_pool/zygote.py::_guard": "a worker's process",
    "areal_x/process_pool/zygote.py::_register": "a user's module, whose import runs user code",
    "areal_x/reward/math/child_loop.py::_reply_to_errors": "a grader's child process",
    "areal_x/reward/math/slime_grader.py::_is_zero": "model text, which SymPy raises anything at",
    "areal_x/reward/math/slime_grader.py::_latex_to_text": "model text, which pylatexenc raises anything at",
    "areal_x/reward/sandbox/child/checker.py::run_asserts": "a data set's test, in the sandbox",
    "areal_x/reward/sandbox/child/program.py::_describe": "an exception of a model's program, in the sandbox",
    "areal_x/reward/sandbox/child/program.py::_guarded": "a model's program, in the sandbox",
    "areal_x/reward/sandbox/child/program.py::_print_error": "an exception of a model's program, in the sandbox",
    "areal_x/reward/sandbox/child/program.py::answer": "a function of a model's program, in the sandbox",
    "areal_x/reward/sandbox/child/program.py::run_module": "a model's program, in the sandbox",
    "areal_x/reward/sandbox/child/program.py::run_script": "the exit handlers of a model's program, in the sandbox",
    "areal_x/reward/sandbox/child/remote.py::_call_back": "a function of a data set's test, in the sandbox",
    "areal_x/rollout/executor.py::_on_group_scored": "the run, as for an episode",
    "areal_x/rollout/executor.py::_settle": "the run: what ends it is kept and raised to the trainer",
    "areal_x/rollout/executor.py::_tick": "the item stream: what it raises ends the run",
    "areal_x/rollout/lockstep.py::_run_round": "a synchronous batch: its error reaches each of its episodes",
    "areal_x/trainer/trainer_thread.py::_work": "the trainer's thread: what it raises is raised where it is awaited",
}
"""Functions that catch everything and go on, each with the boundary that it stands at."""

SERVER_SIDE: dict[str, str] = {
    "areal_x/engine/transfer/vllm_reload.py": "inside the worker of vLLM",
    "areal_x/engine/transfer/vllm_worker.py": "inside the worker of vLLM",
}
"""Files that can be imported in a server's own environment only; their names are read, not imported."""

PICKLE_FILES: dict[str, str] = {
    "areal_x/api/travelling.py": "functions of a script on their way to a worker process",
    "areal_x/engine/inference/messages.py": "between the driver and the engine process that it started",
    "areal_x/engine/ranks/rank_channel.py": "between the driver and the ranks that it started",
    "areal_x/process_pool/function_transfer.py": "functions on their way to a worker process",
    "areal_x/process_pool/wire.py": "calls on their way to a worker process",
    "areal_x/process_pool/worker_link.py": "results of a worker process, with a table of allowed classes",
    "areal_x/process_pool/zygote.py": "orders of the driver to its own helper process",
    "areal_x/process_pool/zygote_link.py": "answers of the helper process to its driver",
}
"""Files that may unpickle: only what passes between a process and its own children."""


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


def bound_names(path: Path) -> set[str]:
    """Functions, classes and variables at a file's top."""
    names: set[str] = set()
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def unlisted_names(path: Path) -> Iterator[str]:
    names = exported(path)
    if names is None:
        if path.name != "__init__.py" or len(tree(path).body) > 1:
            yield ": no __all__"
        return
    if not is_sorted(names) or len(set(names)) != len(names):
        yield f": __all__ is not sorted: {names}"
    there = bound_names(path) if relative(path) in SERVER_SIDE else dir(importlib.import_module(module_name(path)))
    for name in names:
        if name not in there:
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
    """Functions with a handler of everything that does not end in ``raise``."""
    broad = {"Exception", "BaseException", "ExceptionGroup", "BaseExceptionGroup"}
    for function in ast.walk(tree(path)):
        for node in ast.walk(function) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) else ():
            if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                names = {getattr(one, "id", getattr(one, "attr", "")) for one in caught if one is not None}
                if names & broad or node.type is None:
                    yield f"::{function.name}"


def test_errors_are_caught_by_name() -> None:
    assert set(everywhere(broad_handlers)) == set(BROAD_HANDLERS)


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


def unpickling(path: Path) -> Iterator[str]:
    """Calls that unpickle, and classes that can."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases):
            yield f":{node.lineno}: {node.name}"
    names = {"pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.loads", "marshal.loads", "pickler().loads"}
    yield from (f":{call.lineno}: {name}" for name, call in calls(path) if name in names)


def evaluation(path: Path) -> Iterator[str]:
    forbidden = {"eval", "exec", "parse_expr", "sympify", "sympy.sympify", "os.system", "os.popen"}
    for name, call in () if is_excepted(relative(path)) else calls(path):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        shell, only_weights = keywords.get("shell"), keywords.get("weights_only")
        if name in forbidden or (isinstance(shell, ast.Constant) and shell.value):
            yield f":{call.lineno}: {name}"
        if name == "torch.load" and not (isinstance(only_weights, ast.Constant) and only_weights.value is True):
            yield f":{call.lineno}: torch.load without weights_only=True"


def test_nothing_is_evaluated() -> None:
    assert not everywhere(evaluation)


def test_only_named_files_unpickle() -> None:
    assert {found.partition(":")[0] for found in everywhere(unpickling)} == set(PICKLE_FILES)


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


def test_exceptions_to_the_sizes_are_still_needed() -> None:
    assert not [name for name in LONG_FILES if len((ROOT / name).read_text().splitlines()) <= MAX_FILE_LINES]
    names = {
        f"{relative(path)}::{node.name}" for path in modules() for node in ast.walk(tree(path)) if hasattr(node, "name")
    }
    assert set(LONG_FUNCTIONS) <= names


def test_files_of_tests_have_names_of_their_own() -> None:
    """They are imported by their names alone, so a second one of a name cannot be collected."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if "sglang_cpu" not in path.parts)
    del names["conftest.py"]
    assert [name for name, count in names.items() if count > 1] == []
