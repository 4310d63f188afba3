"""How a function gets from the user's process into the workers: by reference, never by value where a reference exists.

The function is pickled, so importable functions, ``functools.partial`` of them, bound methods and callable objects all
work. Beside the pickle travel the files of the modules that it names, so that a module which only a file path leads to
(``file.py``, a test module, a script) is loaded under the same name in the helper process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import io
import marshal
import os
import pickle
import runpy
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from areal_x.process_pool.errors import FunctionTransferError

__all__ = ["FunctionPayload", "describe_function", "dump_function", "import_function", "load_function"]

_FIX = "move it to the top level of a module (or of the script), and bind arguments with functools.partial"


@dataclass
class FunctionPayload:
    """A pickled function with what is needed to load it in a process that has not imported anything yet."""

    pickled: bytes
    module_files: dict[str, str] = field(default_factory=dict)
    main_path: str | None = None
    main_module: str | None = None
    sys_path: list[str] = field(default_factory=list)

    def dump(self) -> bytes:
        """One byte string; equal functions give equal strings."""
        values = (self.pickled, sorted(self.module_files.items()), self.main_path, self.main_module, self.sys_path)
        return pickle.dumps(values, 5)

    @classmethod
    def load(cls, data: bytes) -> FunctionPayload:
        pickled, module_files, main_path, main_module, sys_path = pickle.loads(data)
        return cls(pickled, dict(module_files), main_path, main_module, sys_path)


def describe_function(function: Any) -> str:
    """A short name for messages."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def import_function(path: str) -> Any:
    """The object that ``package.module:name``, ``package.module.name`` or ``file.py:name`` stands for.

    A file is loaded once under a name made from its path.
    """
    module_name, separator, qualname = path.rpartition(":")
    if not separator:
        module_name, _, qualname = path.rpartition(".")
    if not module_name or not qualname:
        raise FunctionTransferError(f"{path!r} names no function; write package.module:function or file.py:function")
    if module_name.endswith(".py"):
        module = _load_file(_file_module_name(module_name), os.path.abspath(module_name))
    else:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise FunctionTransferError(f"cannot import {module_name!r} for {path!r}: {error}") from error
    target: Any = module
    for part in qualname.split("."):
        if not hasattr(target, part):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            has = ", ".join(names[:20]) or "no functions"
            raise FunctionTransferError(f"{module_name} has no {qualname!r}; it has: {has}")
        target = getattr(target, part)
    return target


def _file_module_name(path: str) -> str:
    full = os.path.realpath(path)
    return f"areal_x_file_{os.path.basename(full)[:-3]}_{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _load_file(name: str, path: str) -> types.ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    if not os.path.isfile(path):
        raise FunctionTransferError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FunctionTransferError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _ReferencePickler(pickle.Pickler):
    """Records the modules of all functions and classes that a pickle names."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 5)
        self.modules: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType | type):
            self.modules.add(value.__module__)
            if isinstance(value, types.FunctionType) and value.__module__ == "__main__" and _main_is_interactive():
                return _reduce_interactive(value)
        return NotImplemented


def dump_function(function: Callable[..., Any]) -> bytes:
    """Pickle a function for the workers.

    Raises:
        FunctionTransferError: it is a lambda, a closure, or holds something that cannot be pickled.
    """
    name = describe_function(function)
    buffer = io.BytesIO()
    pickler = _ReferencePickler(buffer)
    try:
        pickler.dump(function)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        raise FunctionTransferError(f"{name} cannot be sent to a worker process ({error}); {_FIX}") from error
    payload = FunctionPayload(buffer.getvalue(), sys_path=[os.path.abspath(entry) for entry in sys.path])
    for module_name in sorted(pickler.modules):
        module = sys.modules.get(module_name)
        path = getattr(module, "__file__", None)
        if module_name == "__main__":
            if not _main_is_interactive():
                spec = getattr(module, "__spec__", None)
                payload.main_module = spec.name if spec is not None else None
                payload.main_path = os.path.abspath(path) if path else None
        elif path and path.endswith(".py"):
            payload.module_files[module_name] = os.path.abspath(path)
    return payload.dump()


def load_function(data: bytes) -> Callable[..., Any]:
    """Import what the function needs and return it; called once, in the helper process. Any error may come out."""
    payload = FunctionPayload.load(data)
    sys.path[:] = payload.sys_path + [entry for entry in sys.path if entry not in payload.sys_path]
    for name, path in payload.module_files.items():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
            _load_file(name, path)
    if payload.main_path is not None or payload.main_module is not None:
        _load_main(payload)
    function = pickle.loads(payload.pickled)
    if not callable(function):
        raise FunctionTransferError(f"{function!r} is not callable")
    return function


def _load_main(payload: FunctionPayload) -> None:
    """Run the user's script as ``__mp_main__``, as multiprocessing does: its ``__main__`` guard stays false."""
    if "__mp_main__" in sys.modules:
        return
    if payload.main_module is not None:
        content = runpy.run_module(payload.main_module, run_name="__mp_main__", alter_sys=True)
    else:
        content = runpy.run_path(str(payload.main_path), run_name="__mp_main__")
    module = types.ModuleType("__mp_main__")
    module.__dict__.update(content)
    for value in content.values():
        # run_path clears the globals that the functions were made with; they must see the module's own dict.
        if isinstance(value, types.FunctionType) and value.__module__ == "__mp_main__":
            value.__globals__.update(content)
    sys.modules["__mp_main__"] = sys.modules["__main__"] = module


def _main_is_interactive() -> bool:
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is None and (path is None or not os.path.isfile(path))


def _reduce_interactive(function: types.FunctionType) -> Any:
    """A function typed into a notebook or a prompt has no file: send its code and the globals that it names."""
    if function.__closure__ or function.__name__ == "<lambda>":
        raise pickle.PicklingError(f"{function.__qualname__} is a lambda or a closure")
    names: set[str] = set()
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        names.update(code.co_names)
        pending.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    used = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    modules = {name: value.__name__ for name, value in used.items() if isinstance(value, types.ModuleType)}
    others = {name: value for name, value in used.items() if name not in modules and value is not function}
    arguments = (marshal.dumps(function.__code__), function.__name__, function.__defaults__, function.__kwdefaults__)
    return _rebuild_interactive, (*arguments, modules, others)


def _rebuild_interactive(
    code: bytes,
    name: str,
    defaults: tuple[Any, ...] | None,
    kwdefaults: dict[str, Any] | None,
    modules: dict[str, str],
    others: dict[str, Any],
) -> types.FunctionType:
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__, **others}
    namespace.update((alias, importlib.import_module(module)) for alias, module in modules.items())
    function = types.FunctionType(marshal.loads(code), namespace, name, defaults)
    function.__kwdefaults__ = kwdefaults
    namespace[name] = function
    return function
