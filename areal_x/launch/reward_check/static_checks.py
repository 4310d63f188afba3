"""Mistakes that the source of a reward shows: blocking calls, swallowed exceptions, hidden state, unseeded chance.

Names are resolved in the module of the function, so ``from time import sleep as nap`` is seen and a local function
called ``sleep`` is not. Functions of the same module and methods of the same object that it calls are read, too.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_x.api.reward_arguments import innermost
from areal_x.launch.reward_check.finding import Finding
from areal_x.reward.adapters.calling import Adapter
from areal_x.reward.composite import CompositeReward

__all__ = ["static_findings"]

_BLOCKING = (
    "time.sleep",
    "requests",
    "urllib.request.urlopen",
    "urllib3",
    "http.client",
    "socket.create_connection",
    "subprocess.run",
    "subprocess.call",
    "subprocess.check_call",
    "subprocess.check_output",
    "os.system",
    "posix.system",
    "os.popen",
    "httpx.get",
    "httpx.post",
    "httpx.request",
    "httpx.Client",
    "openai.OpenAI",
    "anthropic.Anthropic",
)
_BROAD = {"Exception", "BaseException"}


@dataclass(frozen=True)
class _Source:
    """A function's syntax tree, with what its names stand for. ``owner``: the class of which it is a method."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    names: dict[str, Any]
    file: str
    first_line: int
    owner: type | None

    def place(self, node: ast.AST) -> str:
        return f"{self.file}:{self.first_line + getattr(node, 'lineno', 1) - 1}"

    def is_self(self, node: ast.AST) -> bool:
        """Whether an expression is the object of which the function is a method."""
        arguments = self.node.args.args
        return bool(self.owner and arguments) and isinstance(node, ast.Name) and node.id == arguments[0].arg

    def calls(self) -> Iterator[tuple[ast.Call, Any]]:
        """Each call with the object that is called, or None where that is known only when it runs."""
        for node in ast.walk(self.node):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Attribute) and self.is_self(node.func.value):
                yield node, inspect.getattr_static(self.owner, node.func.attr, None)
            else:
                yield node, _resolve(node.func, self.names)


def static_findings(reward: Callable[..., Any], *, is_async: bool) -> list[Finding]:
    """What reading the source shows. A reward without source (a C function, a prompt's) gives nothing."""
    sources = [source for part in _parts(reward) for source in _sources(part)]
    checks: list[Callable[[_Source], Iterator[Finding]]] = [_swallowed, _global_state, _chance]
    checks.append(_blocking if is_async else _object_state)
    return [finding for check in checks for source in sources for finding in check(source)]


def _parts(reward: Any) -> list[Any]:
    """The functions and objects that a reward is made of: the parts of a composite, a function of another library."""
    reward = innermost(reward)
    if isinstance(reward, CompositeReward):
        return [inner for part in reward.parts for inner in _parts(part.function)]
    adapter = getattr(reward, "adapter", None)
    return _parts(adapter.function.function) if isinstance(adapter, Adapter) else [reward]


def _sources(reward: Any) -> Iterator[_Source]:
    """The function, and those of its module or of its class that it calls, each once."""
    owner = None if inspect.isroutine(reward) else type(reward)
    entry = inspect.unwrap(reward if owner is None else owner.__call__)
    if inspect.ismethod(entry):
        owner, entry = type(entry.__self__), entry.__func__
    pending: list[Any] = [entry]
    seen: set[types.FunctionType] = set()
    while pending:
        function = pending.pop()
        if not isinstance(function, types.FunctionType) or function in seen:
            continue
        seen.add(function)
        source = _source(function, owner if "." in function.__qualname__ else None)
        if source is None:
            continue
        yield source
        module = function.__module__
        pending += [called for _, called in source.calls() if getattr(called, "__module__", None) == module]


def _source(function: types.FunctionType, owner: type | None) -> _Source | None:
    try:
        lines, first_line = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    node = tree.body[0] if tree.body else None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    return _Source(node, function.__globals__, Path(function.__code__.co_filename).name, max(first_line, 1), owner)


def _resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that a dotted name stands for. Only attributes of modules are looked up: others may run code."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, names)
        return vars(owner).get(node.attr) if isinstance(owner, types.ModuleType) else None
    return None


def _full_name(called: Any) -> str:
    module = getattr(called, "__module__", None) or getattr(type(getattr(called, "__self__", None)), "__module__", "")
    return f"{module}.{getattr(called, '__qualname__', '')}"


def _blocking(source: _Source) -> Iterator[Finding]:
    for node, called in source.calls():
        name = _full_name(called)
        if called is not None and any(name == known or name.startswith(f"{known}.") for known in _BLOCKING):
            yield Finding(
                "blocking_call",
                "error",
                f"{source.place(node)}: {ast.unparse(node.func)} blocks the event loop of an async reward: "
                "generation and all other rewards wait for it",
                "await an asynchronous call (asyncio.sleep, aiohttp, openai.AsyncOpenAI), or write def instead of "
                "async def, and it runs in a worker process",
            )


def _swallowed(source: _Source) -> Iterator[Finding]:
    for node in ast.walk(source.node):
        if not isinstance(node, ast.ExceptHandler):
            continue
        types_ = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(kind is None or getattr(kind, "id", "") in _BROAD for kind in types_)
        inner = [below for statement in node.body for below in ast.walk(statement)]
        if broad and not any(isinstance(below, ast.Raise) for below in inner):
            score = next((below for below in inner if _gives_a_number(below)), None)
            if score is not None:
                yield Finding(
                    "swallowed_exception",
                    "warning",
                    f"{source.place(node)}: every exception becomes a score ({ast.unparse(score)}): a bug, a missing "
                    "package or a dead server looks like a wrong answer",
                    "catch the one exception that a bad answer causes; let others raise: they are counted, and "
                    "reward.on_failure decides",
                )


def _gives_a_number(node: ast.AST) -> bool:
    """Whether a statement returns, or assigns, a number that is written out."""
    if not isinstance(node, ast.Return | ast.Assign) or node.value is None:
        return False
    constants = [below.value for below in ast.walk(node.value) if isinstance(below, ast.Constant)]
    return any(isinstance(value, int | float) for value in constants)


def _global_state(source: _Source) -> Iterator[Finding]:
    for node in ast.walk(source.node):
        if isinstance(node, ast.Global):
            yield _state(f"{source.place(node)}: the reward assigns the global {', '.join(node.names)}")


def _object_state(source: _Source) -> Iterator[Finding]:
    for node in ast.walk(source.node):
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Attribute) and source.is_self(target.value):
                yield _state(f"{source.place(node)}: the reward assigns its attribute {target.attr}")


def _state(what: str) -> Finding:
    return Finding(
        "shared_state",
        "warning",
        f"{what}; each worker process has its own copy, which is lost when the worker is replaced",
        "make the score depend on the arguments only, or write an async reward: it lives in the run's own process",
    )


def _chance(source: _Source) -> Iterator[Finding]:
    for node, called in source.calls():
        owner = getattr(called, "__self__", None)
        of_module = type(owner).__name__ in ("Random", "RandomState") and type(owner).__module__ in (
            "random",
            "numpy.random.mtrand",
        )
        if of_module and getattr(called, "__name__", "") != "seed":
            yield Finding(
                "unseeded_random",
                "warning",
                f"{source.place(node)}: {ast.unparse(node.func)} draws from a generator that nothing seeds: workers "
                "are forks, so their draws repeat one another, and no run can be repeated",
                "use random.Random(seed), with a seed made from the arguments",
            )
