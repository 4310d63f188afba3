"""The functions that a pool's helper process has loaded or is loading."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from areal_x.process_pool.calls import RegisteredFunction
from areal_x.process_pool.errors import FunctionTransferError
from areal_x.process_pool.function_transfer import describe_function, dump_function

__all__ = ["FunctionRegistry"]

_logger = logging.getLogger("areal_x.process_pool")


class FunctionRegistry:
    """Numbers, payloads and the futures of those who wait for a function to be loaded; each function is loaded once."""

    def __init__(self) -> None:
        self._futures: dict[bytes, asyncio.Future[RegisteredFunction]] = {}
        self._functions: dict[int, RegisteredFunction] = {}
        self._payloads: dict[int, bytes] = {}

    def add(
        self, function: Callable[..., Any], loop: asyncio.AbstractEventLoop
    ) -> tuple[asyncio.Future[RegisteredFunction], int | None]:
        """The future of a function, and its number if it must be loaded now.

        Raises:
            FunctionTransferError: it cannot be sent.
        """
        payload = dump_function(function)
        future = self._futures.get(payload)
        if future is not None:
            return future, None
        number = len(self._functions)
        future = self._futures[payload] = loop.create_future()
        self._functions[number] = RegisteredFunction(number, describe_function(function))
        self._payloads[number] = payload
        return future, number

    def payload(self, number: int) -> bytes:
        """What the helper needs to load a function."""
        return self._payloads[number]

    def loaded_numbers(self) -> list[int]:
        """Functions that a new helper must load again."""
        return [number for number, payload in self._payloads.items() if payload in self._futures]

    def loaded(self, number: int, error: tuple[str, str] | None, num_threads: int, threads: list[str]) -> bool:
        """The helper's answer; True if workers may now be given the function."""
        function = self._functions[number]
        future = self._futures.get(self._payloads[number])
        if future is None:
            return False
        if error is not None:
            del self._futures[self._payloads[number]]
            failure = FunctionTransferError(f"cannot load {function.name} in the helper process: {error[0]}")
            failure.add_note(error[1])
            if not future.done():
                future.set_exception(failure)
            return False
        if num_threads > 1:
            _logger.warning(
                "importing the module of %s started threads (%s); workers are forked without them",
                function.name,
                ", ".join(threads) or f"{num_threads - 1} native",
            )
        if not future.done():
            future.set_result(function)
        return True

    def fail_loading(self, error: Exception) -> None:
        """Nothing that is still being loaded will be."""
        for payload, future in list(self._futures.items()):
            if not future.done():
                del self._futures[payload]
                future.set_exception(error)
                future.exception()  # Whoever waits gets it; that nobody does any more is no fault.
