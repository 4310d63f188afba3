"""Functions that a configuration names, built in or in a user's file, with their arguments bound by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import is_import_path, load_object, nearest

__all__ = ["bound_function"]


def bound_function(
    key: str,
    name: str,
    built_in: Mapping[str, Callable[..., Any]],
    kwargs: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    num_positional: int = 1,
) -> Callable[..., Any]:
    """The function that ``key`` of the configuration names, with all arguments bound that it is not called with.

    Args:
        name: one of ``built_in``, or an import path (``file.py:function``).
        kwargs: the user's own arguments of it, ``<key>_kwargs`` of the configuration.
        settings: values of other configuration fields, by argument name; it gets those that it names.
        num_positional: its first so many arguments are those that it is called with.

    Raises:
        ConfigError: there is no such function, it does not take one of ``kwargs``, or it needs one that is missing.
    """
    settings = settings or {}
    function = _find(key, name, built_in)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}={name!r}: its arguments cannot be inspected ({error}); wrap it in a def") from error
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < num_positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ConfigError(
            f"{key}={name!r} takes {len(positional)} arguments by position; it is called with {num_positional}"
        )
    called_with = {parameter.name for parameter in positional[:num_positional]}
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    own = {n: p for n, p in named.items() if n not in called_with and n not in settings}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for argument in kwargs:
        if argument in settings and argument in named:
            raise ConfigError(
                f"{key}_kwargs.{argument}: is a field of its own; set {key.rpartition('.')[0]}.{argument}"
            )
        if argument not in own and (not takes_all or argument in called_with):
            valid = f"it takes {', '.join(sorted(own))}" if own else "it takes none"
            raise ConfigError(f"{key}_kwargs.{argument}: {name} has no such argument; {valid}")
    missing = [n for n, p in own.items() if p.default is p.empty and n not in kwargs]
    if missing:
        raise ConfigError(f"{key}={name!r} needs the argument {missing[0]}; set {key}_kwargs.{missing[0]}")
    bound = {n: value for n, value in settings.items() if n in named and n not in called_with} | dict(kwargs)
    return functools.partial(function, **bound) if bound else function


def _find(key: str, name: str, built_in: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name in built_in:
        return built_in[name]
    if not is_import_path(name):
        hint = nearest(name, list(built_in))
        raise ConfigError(f"{key}={name!r}: must be one of {', '.join(built_in)}, or file.py:function{hint}")
    function = load_object(name, key)
    if not callable(function):
        raise ConfigError(f"{key}={name!r} is not a function")
    called: Callable[..., Any] = function
    return called
