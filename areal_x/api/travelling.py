"""Functions that worker processes cannot import: lambdas, closures, what a script defines. They travel by value.

Only from a run to its own worker processes, as all functions do (``process_pool/function_transfer.py``).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from areal_x.api.errors import MissingExtraError
from areal_x.api.reward_arguments import innermost, is_async
from areal_x.process_pool.errors import FunctionTransferError
from areal_x.process_pool.function_transfer import describe_function, dump_function

__all__ = ["ByValue", "by_value", "pickler"]


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as workers can get it: itself when they can import it or never get it (``async def``).

    Raises:
        MissingExtraError: it has to travel by value, and nothing is installed that can do so.
    """
    if is_async(function):
        return function
    inner = innermost(function)
    try:
        # A script need not guard its call of the run: workers do not run it again to find a function of it.
        is_main = getattr(inner, "__module__", type(inner).__module__) == "__main__"
        if not is_main or pickler() is None:
            dump_function(function)
            return function
    except FunctionTransferError as error:
        if pickler() is None:
            raise MissingExtraError(
                f"{error}; or install what takes it as it is: pip install 'areal-x[ray]'"
            ) from error
    return ByValue(function)


def pickler() -> Any:
    """The module cloudpickle, of its own or in Ray; ``None`` where neither is installed."""
    for name in ("cloudpickle", "ray.cloudpickle"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return None


class ByValue:
    """A function with everything that it needs of its script. It looks like the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__qualname__ = describe_function(function)
        self.__signature__ = inspect.signature(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Marks of a reward function (`is_group_reward` and the like); what is missing here is asked of the function.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._function, name)

    def __reduce__(self) -> Any:
        return _arrive, (pickler().dumps(self._function),)


def _arrive(pickled: bytes) -> ByValue:
    return ByValue(pickler().loads(pickled))
