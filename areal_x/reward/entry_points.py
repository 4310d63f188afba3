"""Rewards of installed packages: the entry point group ``areal_x.rewards``.

An entry point is either a module, whose import registers rewards with ``register_reward``, or a function or class,
which is registered under the entry point's name::

    [project.entry-points."areal_x.rewards"]
    polite = "my_package.rewards:polite"
    anything = "my_package.more_rewards"
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from areal_x.api.errors import ConfigError

__all__ = ["GROUP", "EntryPointFailure", "failures", "load", "raise_failure"]

GROUP = "areal_x.rewards"


@dataclass(frozen=True, slots=True)
class EntryPointFailure:
    """An entry point that could not be loaded."""

    keys: frozenset[str]
    """Names that are not to be had because of it."""
    error: ConfigError
    """Says which package, which entry and why."""


_failures: list[EntryPointFailure] | None = None


def load(register_reward: Callable[[str], Callable[[Any], Any]]) -> None:
    """Import and register every entry point of the group, once in a process. What fails is kept for ``failures``."""
    global _failures
    if _failures is not None:
        return
    _failures = []
    found = [(_package(entry), entry.name, entry) for entry in metadata.entry_points(group=GROUP)]
    for package, name, entry in sorted(found, key=lambda one: one[:2]):
        place = f"package {package}, entry point {name!r} = {entry.value!r} of group {GROUP!r}"
        try:
            target = _import(entry, place)
            if not isinstance(target, types.ModuleType):
                register_reward(name)(target)
        except ConfigError as error:
            key = getattr(error, "key", name).lower()
            told = error if str(error).startswith(place) else ConfigError(f"{place}: {error}")
            told.__cause__ = error.__cause__
            _failures.append(EntryPointFailure(frozenset({key, name.lower()}), told))


def failures() -> list[EntryPointFailure]:
    """What could not be loaded; empty before the first ``load``."""
    return list(_failures or ())


def raise_failure(key: str) -> None:
    """Raise the error of the entry point that would have given ``key`` (in lower case), if one failed.

    Raises:
        ConfigError: names the package, the entry point and what went wrong.
    """
    for failure in failures():
        if key in failure.keys:
            raise failure.error


def _package(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "(unknown)"


def _import(entry: metadata.EntryPoint, place: str) -> Any:
    try:
        return entry.load()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        # The boundary of the package's module: importing it runs code of theirs, which may raise anything.
        reason = (str(error).splitlines() or ["no message"])[0]
        raise ConfigError(f"{place}: {type(error).__name__}: {reason}") from error
