"""One registry of rewards, selected by name or by data set.

What is registered is either a function that scores (its keyword-only options may be bound from the configuration) or a
class whose instances score. Either pickles by reference, so the process pool can ship it to its workers.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import is_import_path, load_object, nearest

__all__ = ["RewardEntry", "get_reward_fn", "list_rewards", "register_reward"]

RewardFn = Callable[..., Any]
Registered = TypeVar("Registered", bound=Callable[..., Any])

_BUILTIN_MODULES = ("arithmetic", "composite", "format", "gsm8k")
_entries: dict[str, RewardEntry] = {}
_name_of_dataset: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class RewardEntry:
    """A registered reward: ``target`` is a scoring function, or a class whose instances score."""

    name: str
    target: Callable[..., Any]
    datasets: tuple[str, ...]
    summary: str

    @property
    def is_class(self) -> bool:
        """Whether ``target`` has to be constructed first."""
        return inspect.isclass(self.target)


def register_reward(name: str, datasets: Iterable[str] = ()) -> Callable[[Registered], Registered]:
    """Register the decorated top-level function or class as reward ``name`` and as the reward of ``datasets``.

    Names are matched exactly but for case. A module that is loaded twice may register the same thing again.

    Raises:
        ConfigError: the name, or one of the data sets, is already taken by another reward.
    """
    key = name.lower()
    dataset_keys = tuple(dataset.lower() for dataset in datasets)

    def register(target: Registered) -> Registered:
        if "<locals>" in target.__qualname__:
            raise ConfigError(f"reward {name!r} is not importable: define {target.__qualname__} at the top of a module")
        _claim(name, key, target)
        for dataset in dataset_keys:
            owner = _name_of_dataset.get(dataset, key)
            if owner != key:
                raise ConfigError(f"data set {dataset!r} is claimed by rewards {owner!r} and {name!r}")
            if dataset in _entries and dataset != key:
                raise ConfigError(f"data set {dataset!r} of reward {name!r} is also the name of another reward")
        doc = inspect.getdoc(target) or ""
        _entries[key] = RewardEntry(name, target, dataset_keys, doc.split("\n", 1)[0])
        _name_of_dataset.update(dict.fromkeys(dataset_keys, key))
        return target

    return register


def _claim(name: str, key: str, target: Callable[..., Any]) -> None:
    old = _entries.get(key)
    if old is not None and _where(old.target) != _where(target):
        raise ConfigError(f"reward name {name!r} is claimed by {_where(old.target)} and {_where(target)}")
    if _name_of_dataset.get(key, key) != key:
        raise ConfigError(f"reward name {name!r} is a data set of reward {_name_of_dataset[key]!r}")


def _where(target: Callable[..., Any]) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def list_rewards() -> list[RewardEntry]:
    """All registered rewards, by name."""
    _load_builtins()
    return [_entries[key] for key in sorted(_entries)]


def get_reward_fn(name: str | None, *, dataset: str | None = None, **kwargs: Any) -> RewardFn:
    """The reward function of that name, with ``kwargs`` bound.

    Args:
        name: a registered name, a data set (``openai/gsm8k`` counts by its base name), or an import path
            (``package.module:function``, ``package.module.function``, ``file.py:function``). ``None``: the reward of
            ``dataset``.
        dataset: the data set of the run. Rewards that have a ``dataset`` option (``composite``) get it.
        kwargs: options of the reward, by name.

    Raises:
        ConfigError: an unknown name (with near matches), an option that the reward does not take or lacks.
    """
    _load_builtins()
    if name is None:
        if dataset is None:
            raise ConfigError("no reward: set reward.fn, or data.name to a data set that has a built-in reward")
        entry = _find(dataset)
        if entry is None:
            raise ConfigError(f"data.name={dataset!r} has no built-in reward; set reward.fn{_offer(dataset)}")
        target, label = entry.target, entry.name
    else:
        entry = _find(name)
        if entry is None and not is_import_path(name):
            raise ConfigError(f"reward.fn={name!r} is unknown{_offer(name)}")
        target, label = (entry.target, entry.name) if entry else (load_object(name, "reward.fn"), name)
    if not callable(target):
        raise ConfigError(f"reward.fn={label!r} is not a function or a class")
    return _bind(target, label, dataset, kwargs)


def _find(name: str) -> RewardEntry | None:
    key = name.lower()
    for candidate in (key, PurePosixPath(key).name):
        entry = _entries.get(_name_of_dataset.get(candidate, candidate))
        if entry is not None:
            return entry
    return None


def _offer(name: str) -> str:
    known = sorted({*_entries, *_name_of_dataset})
    return nearest(PurePosixPath(name.lower()).name, known) or f"; known: {', '.join(known)}"


def _bind(target: Callable[..., Any], label: str, dataset: str | None, kwargs: dict[str, Any]) -> RewardFn:
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in kwargs:
        if key not in named and not takes_any:
            raise ConfigError(f"reward.kwargs.{key} is not an option of reward {label!r}{nearest(key, named)}")
    if not inspect.isclass(target):
        return functools.partial(target, **kwargs) if kwargs else target
    if "dataset" in named and dataset is not None:
        kwargs.setdefault("dataset", dataset)
    for key, parameter in parameters.items():
        if key in named and parameter.default is parameter.empty and key not in kwargs:
            raise ConfigError(f"reward {label!r} needs reward.kwargs.{key}")
    instance = target(**kwargs)
    if not callable(instance):
        raise ConfigError(f"reward {label!r} is a class without a __call__ method")
    return instance


def _load_builtins() -> None:
    for module in _BUILTIN_MODULES:
        importlib.import_module(f"areal_x.reward.{module}")
