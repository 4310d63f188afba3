"""Runs the model's program: as a script, or as a module whose functions are called from outside.

Nothing that this process ever held knows what the right answers are.
"""

from __future__ import annotations

import atexit
import builtins
import errno
import os
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from typing import Any

from .values import InvalidValueError, decode, dump, encode, load

__all__ = ["EXCEPTION_STATUS", "IMPORTABLE", "lines", "read_source", "run_module", "run_script", "send"]

EXCEPTION_STATUS = 1
IMPORTABLE = frozenset(
    f"{private}{name}"
    for private in ("", "_")
    for name in ("bisect", "collections", "copy", "decimal", "fractions", "functools", "heapq", "itertools", "math")
)
"""Modules whose functions and classes the tests may use as the program has imported them. Nothing in them can hurt."""
_MAX_LINE = 1 << 24
_SOURCE, _CHANNEL = 3, 5
_CHUNK = 1 << 16


def read_source(fd: int = _SOURCE) -> bytes:
    """All of the file ``fd``, whose position may be shared with others."""
    parts, offset = [], 0
    while part := os.pread(fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    os.close(fd)
    return b"".join(parts)


def lines(fd: int) -> Iterator[bytes]:
    """The complete lines that arrive at ``fd``, up to one that is too long."""
    rest = bytearray()
    while part := os.read(fd, _CHUNK):
        begin = max(len(rest) - 1, 0)
        rest += part
        while (end := rest.find(b"\n", begin)) >= 0:
            yield bytes(rest[:end])
            del rest[: end + 1]
            begin = 0
        if len(rest) > _MAX_LINE:
            return


def send(fd: int, message: Any) -> None:
    """Write one message."""
    data = memoryview(dump(message))
    while data:
        data = data[os.write(fd, data) :]


def _new_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(__builtins__=builtins, __file__=f"{name.strip('_')}.py")
    sys.modules[name] = module
    sys.argv = [f"{name.strip('_')}.py"]
    return module


def run_script() -> None:
    """Execute the program as ``__main__`` and end as an interpreter would, but for taking itself apart."""
    module = _new_module("__main__")
    status = _guarded(module, read_source())
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        module.__dict__.clear()  # Files that it left open are written out.
        for stream in (sys.stdout, sys.__stdout__, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException as error:  # The boundary to the program, whose exit handlers may raise anything.
        status = status or 120
        _print_error(error)
    os._exit(status)


def _guarded(module: types.ModuleType, source: bytes) -> int:
    try:
        exec(compile(source, module.__file__ or "", "exec"), module.__dict__)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        os.write(2, str(error.code).encode(errors="replace") + b"\n")
        return EXCEPTION_STATUS
    except BaseException as error:  # The boundary to the program, which may raise anything.
        _print_error(error)
        return EXCEPTION_STATUS
    return 0


def _print_error(error: BaseException) -> None:
    text = ""
    try:
        sys.stdout.flush()
        text = "".join(traceback.format_exception(error, limit=-10))
    except BaseException as second:  # No memory left, or a stream or an exception of the program's own making.
        text = type(second).__name__ + "\n"
    finally:
        _write_error(text or type(error).__name__ + "\n")


def _write_error(text: str) -> None:
    try:
        os.write(2, text.encode(errors="replace")[-8192:])
    except OSError as error:
        if error.errno not in (errno.EFBIG, errno.EBADF, errno.EPERM):
            raise


class _Namespace:
    """The program's module and the objects of it that the other side holds, by number."""

    def __init__(self, module: types.ModuleType, report_fd: int, incoming: Iterator[bytes]) -> None:
        self.module = module
        self.fd = report_fd
        self.incoming = incoming
        self.objects: list[Any] = []

    def encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _keep(self, value: Any) -> list[Any]:
        if value is NotImplemented:
            return ["N"]
        self.objects.append(value)
        kind = type(value)
        methods = [name for name in dir(kind) if name[:2] == "__" and callable(getattr(kind, name, None))]
        return ["h", len(self.objects) - 1, kind.__name__, methods]

    def decode(self, data: Any) -> Any:
        return decode(data, self._foreign)

    def _foreign(self, data: list[Any]) -> Any:
        if data[0] == "h":
            return self.objects[data[1]]
        if data[0] == "n":
            return self.lookup(data[1])
        if data[0] == "k":
            return lambda *args, **kwargs: self.call_back(data[1], args, kwargs)
        raise InvalidValueError(f"unknown kind {data[0]!r}")

    def lookup(self, name: str) -> Any:
        """A global of the program, or a method of its class ``Solution``, as judges of competitions look it up."""
        found = self.module.__dict__
        if name in found:
            return found[name]
        if hasattr(found.get("Solution"), name):
            return getattr(found["Solution"](), name)
        raise NameError(f"name {name!r} is not defined")

    def call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that the other side passed as an argument."""
        send(self.fd, ["callback", number, self.encode(list(args)), self.encode(kwargs)])
        for line in self.incoming:
            message = load(line)
            if message[0] == "result":
                return self.decode(message[1])
            if message[0] == "raised":
                kind = getattr(builtins, message[1], None)
                raise kind(message[2]) if isinstance(kind, type) else RuntimeError(message[2])
            self.answer(message)
        raise EOFError("the other side is gone")

    def answer(self, message: list[Any]) -> None:
        """Do what ``[operation, target, ...]`` asks and send the result, or the exception."""
        try:
            reply = ["result", *self._perform(message)]
        except BaseException as error:  # The boundary to the program, which may raise anything.
            reply = ["raised", *_describe(error)]
        send(self.fd, reply)

    def _perform(self, message: list[Any]) -> list[Any]:
        operation, target = message[0], self.decode(message[1])
        if operation == "value":
            return [self.encode(target)]
        if operation == "get":
            return [self.encode(getattr(target, message[2]))]
        if operation == "set":
            setattr(target, message[2], self.decode(message[3]))
            return [None]
        if operation == "special":
            return [self.encode(getattr(target, message[2])(*self.decode(message[3])))]
        args, kwargs = self.decode(message[2]), self.decode(message[3])
        value = self.encode(target(*args, **kwargs))
        after = self.encode(args)
        return [value, after] if after != message[2] else [value]


def _describe(error: BaseException) -> list[Any]:
    """Names of the exception's classes from its own to the base, its text, and where it came from."""
    names = [kind.__name__ for kind in type(error).__mro__[:-1]]
    try:
        return [names, str(error)[:2000], "".join(traceback.format_exception(error, limit=-5))[-4000:]]
    except BaseException as second:  # An exception of the program's own making.
        return [names, "", type(second).__name__]


def _origin(value: Any) -> list[str] | None:
    """Module and name from which the program has a function or class of the standard library."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module in IMPORTABLE and isinstance(name, str) and getattr(sys.modules.get(module), name, None) is value:
        return [module, name]
    return None


def _contents(namespace: _Namespace) -> dict[str, list[Any]]:
    """What the module holds: name -> [kind, more]; values are sent when they are asked for."""
    contents: dict[str, list[Any]] = {}
    for name, value in list(namespace.module.__dict__.items()):
        if name.startswith("__"):
            continue
        if isinstance(value, types.ModuleType):
            contents[name] = ["module", value.__name__]
        elif isinstance(value, type) and value.__module__ == namespace.module.__name__:
            contents[name] = ["class", [base.__name__ for base in value.__mro__[1:]]]
        elif (origin := _origin(value)) is not None:
            contents[name] = ["import", origin]
        elif callable(value):
            contents[name] = ["function", None]
        else:
            contents[name] = ["value", None]
    return contents


def run_module(write_fd: int) -> None:
    """Execute the program as a module, say what it holds, and do what the lines of the channel ask.

    Args:
        write_fd: where the answers go: the channel itself, or the report.
    """
    module = _new_module("solution")
    namespace = _Namespace(module, write_fd, lines(_CHANNEL))
    source = read_source()
    try:
        exec(compile(source, module.__file__ or "", "exec"), module.__dict__)
        ready = ["ready", _contents(namespace) if write_fd == _CHANNEL else {}]
    except BaseException as error:  # The boundary to the program, which may raise anything.
        send(write_fd, ["failed", *_describe(error)])
        os._exit(EXCEPTION_STATUS)
    send(write_fd, ready)
    for line in namespace.incoming:
        namespace.answer(load(line))
    os._exit(0)
