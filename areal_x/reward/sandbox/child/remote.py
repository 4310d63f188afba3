"""Stand-ins, in the process that holds the tests, for what the program's module defines in its own process.

The tests call them like the originals. Arguments and results pass as plain values; objects of the program's classes
stay where they are, and their methods are called there. What a function of the program returned cannot decide its own
test: such an object compared with a plain value is unequal and has no order, and it does not calculate with plain
values, so that no object can equal whatever it is expected to be. Objects that the test itself made by calling a class
of the program do calculate. How two objects of the program's classes compare is the program's own business.
"""

from __future__ import annotations

import builtins
import importlib
import itertools
import sys
import types
from typing import Any

from .program import IMPORTABLE, lines, send
from .values import InvalidValueError, decode, encode, load

__all__ = ["Program", "ProgramError", "is_remote"]

_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_ARITHMETIC = frozenset(
    f"__{side}{name}__"
    for side in ("", "r", "i")
    for name in (
        *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"),
        *("and", "or", "xor", "lshift", "rshift"),
    )
)
_OTHERS = frozenset(
    f"__{name}__"
    for name in (
        *("len", "iter", "next", "getitem", "setitem", "delitem", "contains", "reversed"),
        *("bool", "str", "repr", "int", "float", "index", "neg", "pos", "abs", "invert", "round"),
    )
)


class ProgramError(Exception):
    """The program ended, or what it sent makes no sense."""


class Program:
    """The other end of the channel."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.incoming = lines(fd)
        self.names: dict[str, Any] = {}
        self.classes: dict[str, type] = {}
        self.kinds: dict[tuple[str, frozenset[str]], type] = {}
        self.callbacks: list[Any] = []

    def start(self, wanted: set[str]) -> dict[str, Any]:
        """Wait for the module and give its contents, ready to be used as globals.

        Args:
            wanted: names whose values are needed, where they are plain values.

        Raises:
            ProgramError: the program ended while it was imported.
            Exception: what its import raised.
        """
        message = self.receive()
        if message[0] == "failed":
            raise self.exception(*message[1:])
        contents = dict(message[1])
        for name, (kind, more) in contents.items():
            if kind == "class":
                self.names[name] = self.classes[name] = self._class(name, more)
        for name, (kind, more) in contents.items():
            if kind == "module" and more in sys.stdlib_module_names:
                self.names[name] = importlib.import_module(more)
            elif kind == "import" and more[0] in IMPORTABLE:
                self.names[name] = getattr(importlib.import_module(more[0]), more[1])
            elif kind == "function":
                self.names[name] = self._function(name)
            elif kind == "value" and name in wanted:
                self.names[name] = self.decode(self.ask("value", ("n", name))[0])
        return self.names

    def receive(self) -> list[Any]:
        """The next message."""
        try:
            message = load(next(self.incoming))
        except (StopIteration, OSError, InvalidValueError) as error:
            raise ProgramError("the program ended") from error
        if not isinstance(message, list) or not message:
            raise ProgramError("the program sent something else than a message")
        return message

    def ask(self, operation: str, target: tuple[str, Any], *more: Any) -> Any:
        """Have something done in the program's process; gives its result or raises its exception."""
        try:
            send(self.fd, [operation, target, *more])
        except OSError as error:
            raise ProgramError("the program ended") from error
        while True:
            message = self.receive()
            if message[0] == "result":
                return message[1:]
            if message[0] == "raised":
                raised = self.exception(*message[1:])
                if isinstance(raised, StopIteration | StopAsyncIteration) and more[:1] != ("__next__",):
                    # It would end a loop over the cases in the test as if there were no more.
                    raise RuntimeError("the program raised StopIteration") from raised
                raise raised
            if message[0] != "callback":
                raise ProgramError(f"the program sent {message[0]!r}")
            self._call_back(*message[1:])

    def call(self, target: tuple[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``target``; what it changed in lists, dicts and sets among ``args`` is changed here, too."""
        encoded = self.encode(list(args))
        value, *after = self.ask("call", target, encoded, self.encode(kwargs))
        if after:
            for old, new in zip(args, self.decode(after[0]), strict=True):
                if isinstance(old, list | bytearray) and type(old) is type(new):
                    old[:] = new
                elif isinstance(old, dict | set) and type(old) is type(new):
                    old.clear()
                    old.update(new)
        return self.decode(value)

    def encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def decode(self, data: Any) -> Any:
        try:
            return decode(data, self._foreign)
        except (InvalidValueError, RecursionError) as error:
            raise ProgramError(f"the program sent no value: {error}") from error

    def _keep(self, value: Any) -> list[Any]:
        target = getattr(value, "_areal_x_target", None)
        if target is not None:
            return list(target)
        if callable(value):
            self.callbacks.append(value)
            return ["k", len(self.callbacks) - 1]
        raise TypeError(f"a {type(value).__name__} cannot be passed to the program: it runs in a process of its own")

    def _foreign(self, data: list[Any]) -> Any:
        if data == ["N"]:
            return NotImplemented
        letter, number, name, methods = data
        if letter != "h" or not isinstance(number, int) or not isinstance(name, str):
            raise InvalidValueError(f"unknown kind {letter!r}")
        key = (name, frozenset(methods))
        if key not in self.kinds:
            known = self.classes.get(name)
            bases = () if known is None or issubclass(known, BaseException) else (known,)
            self.kinds[key] = types.new_class(name, bases, {}, lambda space: _fill(space, self, key[1]))
        value: Any = object.__new__(self.kinds[key])
        object.__setattr__(value, "_areal_x_target", ("h", number))
        object.__setattr__(value, "_areal_x_built", False)
        return value

    def _call_back(self, number: int, args: Any, kwargs: Any) -> None:
        try:
            result = self.callbacks[number](*self.decode(args), **self.decode(kwargs))
            reply = ["result", self.encode(result)]
        except ProgramError:
            raise
        except Exception as error:  # The boundary to the test's function: what it raises is raised in the program.
            reply = ["raised", type(error).__name__, str(error)]
        send(self.fd, reply)

    def exception(self, names: Any, text: Any, trace: Any) -> BaseException:
        """The exception that the program raised, as the nearest class known here."""
        for name in itertools.chain(map(str, names), ["RuntimeError"]):
            kind = self.classes.get(name) or getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception | SystemExit):
                error = kind.__new__(kind, str(text))
                error.args = (str(text),)
                error.add_note(f"in the program:\n{trace}")
                return error
        raise AssertionError("RuntimeError is an exception")

    def _function(self, name: str) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            return self.call(("n", name), args, kwargs)

        function.__name__ = function.__qualname__ = name
        function._areal_x_target = ("n", name)  # type: ignore[attr-defined]
        return function

    def _class(self, name: str, bases: list[str]) -> type:
        for base in bases:
            kind = getattr(builtins, str(base), None)
            if isinstance(kind, type) and issubclass(kind, BaseException):
                return type(name, (kind,), {})
        return types.new_class(name, (), {"metaclass": _metaclass(self, name)})


def _fill(space: dict[str, Any], program: Program, methods: frozenset[str]) -> None:
    """Give a class whose instances stand for remote objects those special methods that the objects have."""

    def special(method: str) -> Any:
        def forward(self: Any, *args: Any) -> Any:
            own = self._areal_x_built or method not in _DECIDING or all(map(is_remote, args))
            if not own:
                if method in _ARITHMETIC:
                    return NotImplemented
                raise TypeError("an object that the program returned is not asked whether a value is in it")
            return program.decode(program.ask("special", self._areal_x_target, method, program.encode(list(args)))[0])

        return forward

    def compare(method: str) -> Any:
        def forward(self: Any, other: Any) -> Any:
            if not is_remote(other):
                return NotImplemented
            return program.decode(program.ask("special", self._areal_x_target, method, program.encode([other]))[0])

        return forward

    def put(self: Any, name: str, value: Any) -> None:
        program.ask("set", self._areal_x_target, name, program.encode(value))

    space.update({method: compare(method) for method in _COMPARISONS})
    space.update({method: special(method) for method in (_ARITHMETIC | _OTHERS) & methods})
    if "__call__" in methods:
        space["__call__"] = lambda self, *args, **kwargs: program.call(self._areal_x_target, args, kwargs)
    space.update(
        __getattr__=lambda self, name: program.decode(program.ask("get", self._areal_x_target, name)[0]),
        __setattr__=put,
        __hash__=lambda self: hash(self._areal_x_target),
    )


_DECIDING = _ARITHMETIC | {"__contains__"}


def is_remote(value: Any) -> bool:
    """Whether it stands for something in the program's process."""
    return getattr(value, "_areal_x_target", None) is not None


def _metaclass(program: Program, name: str) -> type:
    class Remote(type):
        """Calls and attributes of the class itself go to the program, too."""

        _areal_x_target = ("n", name)

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            value = program.call(("n", name), args, kwargs)
            if is_remote(value):
                object.__setattr__(value, "_areal_x_built", True)
            return value

        def __getattr__(cls, attribute: str) -> Any:
            return program.decode(program.ask("get", ("n", name), attribute)[0])

    return Remote
