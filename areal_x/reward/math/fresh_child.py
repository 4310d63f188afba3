"""The grader's child as a new interpreter, for a thread whose own forks do not live (``child_process``)."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from typing import Any, NoReturn

from areal_x.process_pool import FunctionTransferError
from areal_x.process_pool.function_transfer import load_function
from areal_x.reward.math import slime_grader, symbolic
from areal_x.reward.math.child_loop import read_line, run_child

__all__ = ["main"]


def main(descriptor: int, parent: int) -> NoReturn:
    """Become the child of ``parent``: with the functions that it sends first, and warm parsers."""
    described, memory_limit_bytes = json.loads(read_line(descriptor))
    functions = [_function(**description) for description in described]
    symbolic.prepare()
    slime_grader.prepare()
    run_child(descriptor, parent, functions, memory_limit_bytes)


def _function(payload: str = "", error: str = "") -> Callable[..., Any]:
    return functools.partial(_refuse, error) if error else load_function(base64.b64decode(payload))


def _refuse(error: str, *arguments: Any) -> NoReturn:
    raise FunctionTransferError(error)
