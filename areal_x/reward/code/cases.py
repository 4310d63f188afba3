"""Reads the test cases of a data item, in the formats that data sets of programs have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["COLUMNS", "AssertCase", "CallCase", "Case", "PytestCase", "StdioCase", "read_cases"]

COLUMNS = ("tests", "test_cases", "input_output", "ground_truth", "test_list", "public_tests", "private_tests", "test")
"""Columns that may hold test cases, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True)
class StdioCase:
    """The program reads ``stdin`` and prints ``expected``."""

    stdin: str
    expected: str


@dataclass(frozen=True, slots=True)
class CallCase:
    """The program's function ``name``, called with ``args``, returns ``expected``."""

    name: str
    args: list[Any]
    expected: Any
    or_first: bool = False
    """Whether the only element of a list ``expected`` is right, too: APPS and TACO wrap some values, and not others."""


@dataclass(frozen=True, slots=True)
class AssertCase:
    """Code that sees the program's names and raises nothing."""

    code: str
    setup: str = ""


@dataclass(frozen=True, slots=True)
class PytestCase:
    """A file of pytest tests that import the program as ``solution``."""

    text: str


Case = StdioCase | CallCase | AssertCase | PytestCase


def read_cases(columns: Mapping[str, Any], key: str | None = None) -> list[Case]:
    """The test cases of an item.

    Args:
        columns: the item.
        key: the column that holds them; None: the first of ``COLUMNS`` that there is.

    Raises:
        ValueError: there are none, or they are in none of the known formats.
    """
    found = [key] if key is not None else [name for name in COLUMNS if columns.get(name) is not None]
    if not found or columns.get(found[0]) is None:
        raise ValueError(f"reward 'code' needs test cases in a column {key or ' or '.join(COLUMNS)}")
    name = found[0]
    value = columns[name]
    if name == "test_list":
        cases = _mbpp(columns)
    elif name == "test" and "entry_point" in columns:
        cases = [AssertCase(f"{value}\ncheck({columns['entry_point']})")]
    elif name in ("public_tests", "private_tests"):
        cases = _code_contests(columns)
    else:
        cases = _any_format(value, name)
    if not cases:
        raise ValueError(f"column {name!r} holds no test case")
    return cases


def _mbpp(columns: Mapping[str, Any]) -> list[Case]:
    imports = columns.get("test_imports") or ()
    setup = "\n".join([*imports, columns.get("test_setup_code") or ""])
    return [AssertCase(code, setup) for code in [*columns["test_list"], *(columns.get("challenge_test_list") or ())]]


def _code_contests(columns: Mapping[str, Any]) -> list[Case]:
    cases: list[Case] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        tests = columns.get(name)
        if tests:
            cases += _pairs(tests["input"], tests["output"], name)
    return cases


def _any_format(value: Any, name: str) -> list[Case]:
    if isinstance(value, str):
        value = _parsed(value, name)
    if isinstance(value, str):
        is_pytest = "def test_" in value or "import pytest" in value
        return [PytestCase(value) if is_pytest else AssertCase(value)]
    if isinstance(value, Mapping):
        return _mapping(value, name)
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        return [case for one in list(value) for case in _one(one, name)]
    raise ValueError(f"column {name!r} is a {type(value).__name__}, expected test cases")


def _parsed(text: str, name: str) -> Any:
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"column {name!r} holds no valid JSON: {error}") from error


def _one(value: Any, name: str) -> list[Case]:
    if isinstance(value, str):
        return [AssertCase(value)]
    if not isinstance(value, Mapping):
        raise ValueError(f"a test case in column {name!r} is a {type(value).__name__}, expected a dict or an assert")
    expected = next((value[key] for key in ("output", "expected", "expected_output", "stdout") if key in value), None)
    function = value.get("fn_name") or value.get("function")
    if "assert" in value:
        return [AssertCase(value["assert"], value.get("setup", ""))]
    if expected is None and "output" not in value and "expected" not in value:
        raise ValueError(
            f"a test case in column {name!r} has the keys {sorted(value)}, and none is 'output' or 'assert'"
        )
    if function:
        return [CallCase(function, _arguments(value.get("args", value.get("input"))), expected)]
    return _pairs([value.get("input", value.get("stdin", ""))], [expected], name)


def _mapping(value: Mapping[str, Any], name: str) -> list[Case]:
    """``{"inputs": [...], "outputs": [...], "fn_name": ..., "assert_case": [...]}``, as of APPS, TACO and verl."""
    if value.get("assert_case"):
        return [AssertCase(code) for code in value["assert_case"]]
    inputs, outputs = (value.get(key, value.get(key[:-1])) for key in ("inputs", "outputs"))
    if inputs is None or outputs is None:
        raise ValueError(f"column {name!r} has the keys {sorted(value)}; expected 'inputs' and 'outputs'")
    function = value.get("fn_name")
    if not function:
        return _pairs(inputs, outputs, name)
    _same_length(inputs, outputs, name)
    return [
        CallCase(function, _arguments(given), _from_json(expected), or_first=True)
        for given, expected in zip(inputs, outputs, strict=True)
    ]


def _pairs(inputs: Sequence[Any], outputs: Sequence[Any], name: str) -> list[Case]:
    _same_length(inputs, outputs, name)
    return [StdioCase(_text(given), _text(expected)) for given, expected in zip(inputs, outputs, strict=True)]


def _same_length(inputs: Sequence[Any], outputs: Sequence[Any], name: str) -> None:
    if len(inputs) != len(outputs):
        raise ValueError(f"column {name!r} has {len(inputs)} inputs and {len(outputs)} outputs")


def _text(value: Any) -> str:
    """Some items have a list of lines where others have the text."""
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _arguments(given: Any) -> list[Any]:
    """Positional arguments: a list, or one JSON value on each line of a text."""
    if isinstance(given, str):
        return [_from_json(line) for line in given.splitlines() if line.strip()]
    if isinstance(given, list | tuple):
        return list(given)
    raise ValueError(f"the arguments of a function case are a {type(given).__name__}, expected a list")


def _from_json(value: Any) -> Any:
    """The value of a JSON text; other values, and texts that are none, as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
