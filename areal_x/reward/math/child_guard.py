"""What locks a grader's child in before it looks at model text: limits, no builtins for evaluated text, an audit hook.

SymPy turns text into expressions by evaluating generated code. Here that code runs without builtins, may not name
anything that begins with an underscore, and may define no function, so that neither ``__import__`` nor a walk over
attributes leads out. Behind that stands an audit hook: the child starts no program, opens no socket, writes no file.

A child grades many answers, and none may change the verdict on another. Code that only calls SymPy's classes of
expressions and its mathematical functions changes nothing but caches. Any other code, such as one with an attribute
(``pi.default_assumptions.clear()``), is doubtful: the child says so before it runs it, and gets no other job.
"""

from __future__ import annotations

import gc
import opcode
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

__all__ = ["UnsafeAnswerError", "announce_before_doubtful_text", "evaluate_answer", "guard_child", "is_doubtful"]

_FORBIDDEN_EVENTS = (
    "ctypes.",
    "ftplib.",
    "http.",
    "os.",
    "pty.",
    "shutil.",
    "socket.",
    "subprocess.",
    "syslog.",
    "urllib.",
    "webbrowser.",
)
_ALLOWED_OS_EVENTS = {"os.listdir", "os.scandir", "os.walk"}
_DOUBTFUL_OPERATIONS = {
    number
    for name, number in opcode.opmap.items()
    if name.startswith(("DELETE_", "IMPORT_", "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER", "STORE_"))
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _announce() -> None:
    """Nothing to tell outside of a child."""


class UnsafeAnswerError(ValueError):
    """Evaluated text names something that it has no business with."""


def guard_child(keep_open: int, address_space: int) -> None:
    """Lock this process, a forked child, in, within ``address_space`` bytes; of its descriptors one is kept open."""
    # Objects of the parent are not worth looking at: walking them would copy all its pages.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout = sys.stderr = None
    for name in os.listdir("/proc/self/fd"):
        if int(name) != keep_open:
            _close(int(name))
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_AS, address_space)
    parser = sys.modules.get("sympy.parsing.sympy_parser")
    if parser is not None:
        parser.eval_expr = evaluate_answer  # type: ignore[attr-defined]
    sys.addaudithook(_deny)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        pass  # The one that listed them.


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _deny(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or flags & _WRITING:
            raise PermissionError("a grader's child writes no file")
    elif event.startswith(_FORBIDDEN_EVENTS) and event not in _ALLOWED_OS_EVENTS:
        raise PermissionError(f"a grader's child may not do {event}")


def announce_before_doubtful_text(announce: Callable[[], None]) -> None:
    """Call ``announce`` each time before evaluated text may leave something behind in this process."""
    global _announce
    _announce = announce


def evaluate_answer(code: str | CodeType, local_dict: dict[str, Any], global_dict: dict[str, Any]) -> Any:
    """Stands in for SymPy's ``eval_expr`` in the child: the same value, without builtins.

    Raises:
        UnsafeAnswerError: the code names something that begins with an underscore, or defines a function.
    """
    compiled = compile(code, "<answer>", "eval") if isinstance(code, str) else code
    names = [name for name in compiled.co_names if name.startswith("_")]
    if names or any(isinstance(constant, CodeType) for constant in compiled.co_consts):
        raise UnsafeAnswerError(f"an answer may not name {names or 'a function'}")
    if is_doubtful(compiled, {**global_dict, **local_dict}):
        _announce()
    return eval(compiled, {**global_dict, "__builtins__": {}}, local_dict)


def is_doubtful(code: CodeType, names: dict[str, Any]) -> bool:
    """Whether code does more than call SymPy's expressions and functions: it might leave something behind."""
    from sympy import Basic

    if not _DOUBTFUL_OPERATIONS.isdisjoint(code.co_code[::2]):
        return True
    return not all(_is_expression(names[name], Basic) for name in code.co_names if name in names)


def _is_expression(value: Any, basic: type) -> bool:
    if isinstance(value, type):
        return issubclass(value, basic)
    if isinstance(value, FunctionType):
        return value.__module__.startswith("sympy.functions.")
    return isinstance(value, basic | int | float | complex)
