"""A function of the user's that was written for another library: found by its spec, called with what it takes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from areal_x.api.errors import ConfigError, DataError
from areal_x.api.import_paths import load_object, nearest
from areal_x.api.reward_arguments import is_async
from areal_x.reward.adapters.slime_stand_in import provide_slime_types

__all__ = ["LibraryFunction"]

_KEY = "reward.fn"


class LibraryFunction:
    """The function behind ``library:spec``.

    Args:
        library: the library that it was written for.
        spec: as in ``adapt``.
        default_function: what a bare ``file.py`` names.

    Raises:
        ConfigError: there is no such function, or it is none.
    """

    def __init__(self, library: str, spec: str, default_function: str | None) -> None:
        self.library = library
        self.name = f"{library}:{spec}"
        if library == "slime":
            provide_slime_types()
        path = os.path.expanduser(spec.replace("::", ":"))
        if path.endswith(".py") and default_function is not None:
            path = f"{path}:{default_function}"
        file, separator, name = path.rpartition(":")
        self.absolute_spec = f"{os.path.abspath(file)}:{name}" if separator and file.endswith(".py") else path
        self.function: Callable[..., Any] = load_object(path, _KEY)
        if inspect.isclass(self.function) or not callable(self.function):
            kind = "a class" if inspect.isclass(self.function) else f"a {type(self.function).__name__}"
            raise ConfigError(f"{_KEY}={self.name!r} is {kind}, expected a function")
        self.is_async = is_async(self.function)
        self._parameters = list(inspect.signature(self.function).parameters.values())
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in self._parameters)

    def first_names(self, count: int) -> list[str]:
        """Names of the first ``count`` parameters, which get their arguments by position."""
        return [parameter.name for parameter in self._parameters[:count]]

    def taken(self, arguments: Mapping[str, Any], num_positional: int = 0) -> dict[str, Any]:
        """Those of ``arguments`` that the function takes by name, behind its first ``num_positional`` parameters."""
        if self.takes_any:
            return dict(arguments)
        named = {parameter.name for parameter in self._by_name(num_positional)}
        return {name: value for name, value in arguments.items() if name in named}

    def check_options(self, options: Mapping[str, Any], num_positional: int = 0) -> None:
        """Each option must be a parameter of the function.

        Raises:
            ConfigError: one is not.
        """
        for key in options:
            if key not in self.taken(options, num_positional):
                known = [parameter.name for parameter in self._by_name(num_positional)]
                raise ConfigError(f"reward.kwargs.{key} is not an argument of {self.name}{nearest(key, known)}")

    def check_columns(self, columns: Collection[str], given: Collection[str], num_positional: int = 0) -> None:
        """What the function needs by name and is not ``given`` must be a column.

        Raises:
            DataError: it is none.
        """
        for parameter in self._by_name(num_positional):
            name = parameter.name
            if parameter.default is parameter.empty and name not in given and name not in columns:
                known = ", ".join(sorted(columns)) or "none"
                raise DataError(f"{self.name} needs a column {name!r} (or reward.kwargs.{name}); the data has: {known}")

    def _by_name(self, num_positional: int) -> list[inspect.Parameter]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [parameter for parameter in self._parameters[num_positional:] if parameter.kind in kinds]
