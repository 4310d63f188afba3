"""A worker: receives one call after the other, runs it, sends the result. Single-threaded, forked from the zygote."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from areal_x.process_pool import isolation
from areal_x.process_pool.kept_children import has_leftovers
from areal_x.process_pool.wire import (
    CALL_NUMBER,
    KIND_ERROR,
    KIND_FLOAT,
    KIND_PICKLE,
    KIND_READY,
    LEFT_PROCESSES,
    MAX_RESULT_BYTES,
    RESULT_HEADER,
    decode_call,
    read_memory_file,
)

__all__ = ["run_worker"]

_OUTPUT_LIMIT = 8192
_TRACEBACK_LIMIT = 16384


class _BoundedOutput:
    """Stands in for ``sys.stdout`` and ``sys.stderr``: keeps the first characters of a call, drops the rest."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = _OUTPUT_LIMIT

    def write(self, text: str) -> int:
        if self._room > 0:
            self._parts.append(text[: self._room])
            self._room -= len(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def take(self) -> str:
        if not self._parts:
            return ""
        text = "".join(self._parts)
        self._parts.clear()
        self._room = _OUTPUT_LIMIT
        return text


def run_worker(
    calls: socket.socket,
    results: socket.socket,
    functions: dict[int, Callable[..., Any]],
    memory_limit_bytes: int,
    process_limit: int,
) -> None:
    """Serve calls until the pool closes its end. Never returns."""
    os.setsid()
    isolation.set_process_name("areal-x-worker")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    output = _BoundedOutput()
    sys.stdout = sys.stderr = output
    isolation.subreaper()
    isolation.limit_worker(memory_limit_bytes, process_limit)
    isolation.die_with_parent(signal.SIGKILL)  # After the user id changed: the kernel clears it at that moment.
    own_pid = os.getpid()
    buffer = bytearray(1 << 18)
    results.sendall(RESULT_HEADER.pack(0, KIND_READY, 0, 0, time.monotonic(), 0.0, 0.0))
    while True:
        size, ancillary, _, _ = calls.recvmsg_into([buffer], 64, socket.MSG_CMSG_CLOEXEC)
        if size == 0:
            os._exit(0)
        frame = _serve(memoryview(buffer)[:size], ancillary, functions, output)
        if os.getpid() != own_pid:
            os._exit(0)  # A child that the function forked came back from it; only the worker itself may answer.
        results.sendall(frame)


def _serve(
    message: memoryview, ancillary: list[Any], functions: dict[int, Callable[..., Any]], output: _BoundedOutput
) -> bytes:
    (number,) = CALL_NUMBER.unpack_from(message)
    value: Any = None
    error: BaseException | None = None
    started = time.monotonic()
    try:
        if ancillary:
            function_number, kwargs = decode_call(read_memory_file(int.from_bytes(ancillary[0][2][:4], sys.byteorder)))
        else:
            function_number, kwargs = decode_call(message[8:])
        started = time.monotonic()
        value = functions[function_number](**kwargs)
    except BaseException as caught:  # The boundary to the user's function: SystemExit, too, is its result.
        error = caught
    seconds = time.monotonic() - started
    kwargs = {}
    # The worker is a subreaper, so a process that a call left behind, even a daemon, is a child of it.
    flags = LEFT_PROCESSES if has_leftovers() else 0
    printed = output.take()
    if error is None and type(value) is float and not printed:
        return RESULT_HEADER.pack(0, KIND_FLOAT, flags, number, started, seconds, value)
    kind, body = _body(value, error, printed)
    return RESULT_HEADER.pack(len(body), kind, flags, number, started, seconds, 0.0) + body


def _body(value: Any, error: BaseException | None, printed: str) -> tuple[int, bytes]:
    if error is None:
        try:
            body = pickle.dumps((value, printed), 5)
            if len(body) <= MAX_RESULT_BYTES:
                return KIND_PICKLE, body
            error = ValueError(f"the function returned {len(body)} bytes, more than {MAX_RESULT_BYTES}")
        except BaseException as caught:  # The boundary to the user's value: pickling runs its code.
            cause = f"{type(caught).__name__}: {caught}"
            error = TypeError(f"the function returned a {type(value).__qualname__}, which cannot be sent back: {cause}")
            error.__cause__ = None
    try:
        text = "".join(traceback.format_exception(error))
        summary = f"{type(error).__name__}: {error}"
    except BaseException as caught:  # The boundary to the user's exception: its __str__ is user code.
        text = summary = f"{type(error).__name__} (its message could not be made: {type(caught).__name__})"
    if len(text) > _TRACEBACK_LIMIT:
        text = text[: _TRACEBACK_LIMIT // 2] + "\n...\n" + text[-_TRACEBACK_LIMIT // 2 :]
    return KIND_ERROR, pickle.dumps((type(error).__name__, summary[:1000], text, printed), 5)
