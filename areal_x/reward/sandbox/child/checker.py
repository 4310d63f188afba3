"""Runs the tests in a process that never holds the program's code; what it reports cannot be forged from there.

checker ──"call f with 2"──▶ program
        ◀──"4"────────────
"""

from __future__ import annotations

import builtins
import os
import sys
import traceback
import types
from typing import Any

from .program import read_source, send
from .remote import Program, ProgramError, is_remote
from .values import load

__all__ = ["run_asserts", "run_pytest"]

_REPORT, _CHANNEL = 4, 5
_HELPERS = frozenset(
    {"Counter", "Decimal", "Fraction", "OrderedDict", "defaultdict", "deque", "isclose", "np", "numpy"}
)
"""Names that tests use to compare, and programs import."""


def _end(report: dict[str, Any]) -> None:
    send(_REPORT, report)
    os._exit(0)


def _summary(error: BaseException) -> str:
    return "".join(traceback.format_exception(error, limit=-4))[-2000:]


def _failed(error: BaseException, program: str) -> dict[str, Any]:
    """A report; ``program`` says how far that came if it did not end."""
    state = "ended" if isinstance(error, ProgramError) else program
    return {"program": state, "passed": False, "kind": type(error).__name__, "error": _summary(error)}


def _names(code: types.CodeType) -> set[str]:
    """All names that a piece of code uses or imports."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _start(*codes: types.CodeType) -> dict[str, Any]:
    """The program's names; its failure is reported here and ends this process."""
    try:
        return Program(_CHANNEL).start(set().union(*map(_names, codes)))
    except (
        Exception,
        SystemExit,
    ) as error:  # The boundary to the program's import: what it raised is the program's verdict.
        _end(_failed(error, "raised"))
        raise


def _without_impostors(names: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """``names`` without those that a test expects to be something else: a program's own ``abs`` could call all right.

    A function under test may have such a name, though: it is kept if it is all that the test calls of the program.
    """
    called = {name for name in used & names.keys() if is_remote(names[name])}
    return {name: value for name, value in names.items() if called == {name} or not _is_impostor(name, value)}


def _is_impostor(name: str, value: Any) -> bool:
    if hasattr(builtins, name):
        return value is not getattr(builtins, name)
    if name in _HELPERS or name in sys.stdlib_module_names:
        return is_remote(value) or getattr(value, "__name__", "") != name
    return False


def run_asserts() -> None:
    """Execute the test's code with the program's names as its globals; passed if it reaches its end."""
    order = load(read_source())
    setup = compile(order["setup"], "setup.py", "exec")
    code = compile(order["code"], "test.py", "exec")
    space: dict[str, Any] = {"__name__": "test", **_without_impostors(_start(setup, code), _names(code))}
    try:
        exec(setup, space)
        exec(code, space)
    except BaseException as error:  # The boundary to the test: whatever it raises, it has not passed.
        _end(_failed(error, "ok"))
    _end({"program": "ok", "passed": True, "error": ""})


class _Results:
    """A plugin of pytest that keeps how each test ended."""

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}
        self.errors: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test passes if its set-up, its call and its tear-down do; skipped tests count as not passed."""
        name = report.nodeid.split("::", 1)[-1]
        self.passed[name] = report.passed and self.passed.get(name, True)
        if report.failed:
            self.errors.append(f"{name}: {report.longreprtext}"[-1000:])

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be collected has no tests; the reason is kept."""
        if report.failed:
            self.errors.append(report.longreprtext[-2000:])


def run_pytest() -> None:
    """Run a pytest file that imports the program by its module's name."""
    import pytest

    order = load(read_source())
    code = compile(order["code"], "test_program.py", "exec")
    module = types.ModuleType("solution")
    module.__dict__.update(_start(code))
    # A test that imports a name asks for it; one that imports all does not ask for another ``abs``.
    module.__dict__["__all__"] = list(_without_impostors({**module.__dict__}, set()))
    sys.modules["solution"] = module
    with open("test_program.py", "w") as file:
        file.write(order["code"])
    results = _Results()
    words = [
        "-q",
        "--rootdir=/tmp",
        "--noconftest",
        "-c",
        "/dev/null",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:faulthandler",
    ]
    pytest.main([*words, "test_program.py"], plugins=[results])
    errors = "\n".join(results.errors)[-4000:]
    _end({"program": "ok", "tests": results.passed, "error": errors})
