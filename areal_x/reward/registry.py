"""One registry of rewards, selected by name or by data set.

What is registered is either a function that scores (its keyword-only options may be bound from the configuration) or a
class whose instances score. Either pickles by reference, so the process pool can ship it to its workers.

A name is looked for among the built-in rewards and what is registered already; then among the entry points of
installed packages, which are imported only then; then it may be a prefix: ``boxed_NAME``, ``LIBRARY:SPEC`` of another
library, or an import path.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, TypeVar

from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import LIBRARIES, is_import_path, load_object, nearest, split_library

__all__ = [
    "BOXED",
    "IN_A_BOX",
    "LIBRARIES",
    "ClaimError",
    "RewardEntry",
    "find_reward",
    "get_reward_fn",
    "list_rewards",
    "offer",
    "register_reward",
    "split_library",
]

RewardFn = Callable[..., Any]
Registered = TypeVar("Registered", bound=Callable[..., Any])

IN_A_BOX = "\\boxed{{{}}}"
"""``boxed_as`` of a reward that searches for the box itself."""
BOXED = "boxed_"
"""Prefix of a name: that reward, seeing the last boxed answer only."""
_BUILTIN_MODULES = (
    "arithmetic",
    "clevr",
    "code",
    "composite",
    "cosine",
    "f1",
    "format",
    "geometry3k",
    "gsm8k",
    "judge",
    "length",
    "math",
    "multiple_choice",
    "random_reward",
    "remote",
    "repetition",
)
_entries: dict[str, RewardEntry] = {}
_name_of_dataset: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class RewardEntry:
    """A registered reward: ``target`` is a scoring function, or a class whose instances score."""

    name: str
    target: Callable[..., Any]
    datasets: tuple[str, ...]
    summary: str
    extracts: str = ""
    """What it takes from the completion, in a few words."""
    returns: str = ""
    """The values that it gives."""
    boxed_as: str | None = "{}"
    """What ``boxed_NAME`` gives it as the completion: a format with one place for the boxed answer. None: refused."""

    @property
    def is_class(self) -> bool:
        """Whether ``target`` has to be constructed first."""
        return inspect.isclass(self.target)

    @property
    def is_builtin(self) -> bool:
        """Whether it ships with areal_x."""
        return self.target.__module__.startswith("areal_x.reward.")


class ClaimError(ConfigError):
    """Two rewards claim one name or data set, ``key``."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def register_reward(
    name: str,
    datasets: Iterable[str] = (),
    *,
    extracts: str = "",
    returns: str = "",
    boxed_as: str | None = "{}",
) -> Callable[[Registered], Registered]:
    """Register the decorated top-level function or class as reward ``name`` and as the reward of ``datasets``.

    Names are matched exactly but for case. A module that is loaded twice may register the same thing again.

    Args:
        name: without ``:``, ``.`` and ``/``, which mark import paths and hub names.
        datasets: base names of the data sets whose reward it is (``gsm8k`` for ``openai/gsm8k``).
        extracts: what it takes from the completion, for ``areal-x reward list``.
        returns: the values that it gives, for ``areal-x reward list``.
        boxed_as: how ``boxed_NAME`` writes the boxed answer as the completion, for a reward that searches for a mark:
            ``Answer: {}``, or ``IN_A_BOX``. None: the reward looks at more than an answer and has no ``boxed_`` form.

    Raises:
        ConfigError: the name, or one of the data sets, is already taken by another reward, or is no name; ``boxed_as``
            has no place for an answer.
    """
    if isinstance(datasets, str):
        raise ConfigError(f"reward {name!r}: datasets={datasets!r} is one string; write datasets=[{datasets!r}]")
    key = _key(name, ":./", f"reward name {name!r}")
    _check_boxed_as(name, boxed_as)
    dataset_keys = tuple(_key(dataset, ":/", f"data set {dataset!r} of reward {name!r}") for dataset in datasets)

    def register(target: Registered) -> Registered:
        if not callable(target):
            raise ConfigError(f"reward {name!r} is a {type(target).__name__}; register a function or a class")
        where = getattr(target, "__qualname__", "")
        if not where or "<locals>" in where or "<lambda>" in where:
            what = where or f"a {type(target).__name__}"
            raise ConfigError(
                f"reward {name!r} is not importable: define {what} as a def or class at the top of a module"
            )
        _claim(name, key, target)
        for dataset in dataset_keys:
            owner = _name_of_dataset.get(dataset, key)
            if owner != key:
                raise ClaimError(f"data set {dataset!r} is claimed by rewards {owner!r} and {name!r}", dataset)
            if dataset in _entries and dataset != key:
                raise ClaimError(f"data set {dataset!r} of reward {name!r} is also the name of another reward", dataset)
        doc = inspect.getdoc(target) or ""
        _entries[key] = RewardEntry(name, target, dataset_keys, doc.split("\n", 1)[0], extracts, returns, boxed_as)
        _name_of_dataset.update(dict.fromkeys(dataset_keys, key))
        return target

    return register


def _key(name: str, forbidden: str, what: str) -> str:
    if not isinstance(name, str) or not name or name != name.strip() or set(name) & set(forbidden):
        raise ConfigError(f"{what} is no plain name: write text without {' '.join(forbidden)} and blanks around it")
    return name.lower()


def _check_boxed_as(name: str, boxed_as: str | None) -> None:
    try:
        written = [] if boxed_as is None else [boxed_as.format(answer) for answer in ("1", "12")]
    except (AttributeError, IndexError, KeyError, ValueError):
        written = [""]
    if any(text.count(answer) != 1 for text, answer in zip(written, ("1", "12"), strict=False)):
        raise ConfigError(f"reward {name!r}: boxed_as={boxed_as!r} must have one place for the answer, as in '[{{}}]'")


def _claim(name: str, key: str, target: Callable[..., Any]) -> None:
    old = _entries.get(key)
    if old is not None and _where(old.target) != _where(target):
        raise ClaimError(f"reward name {name!r} is claimed by {_where(old.target)} and {_where(target)}", key)
    if _name_of_dataset.get(key, key) != key:
        raise ClaimError(f"reward name {name!r} is a data set of reward {_name_of_dataset[key]!r}", key)


def _where(target: Callable[..., Any]) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def list_rewards() -> list[RewardEntry]:
    """All rewards by name: the built-in ones, those of installed packages, and those registered by the program.

    A package whose rewards cannot be loaded is left out; ``areal_x.reward.entry_points.failures`` tells why.
    """
    _load_builtins()
    _load_entry_points()
    return [_entries[key] for key in sorted(_entries)]


def get_reward_fn(name: str | None, *, dataset: str | None = None, **kwargs: Any) -> RewardFn:
    """The reward function of that name, with ``kwargs`` bound.

    Args:
        name: a registered name; a data set (``openai/gsm8k`` counts by its base name); ``boxed_NAME``, a registered
            reward that sees the last boxed answer only; ``LIBRARY:SPEC``, a reward of another library (``LIBRARIES``);
            or an import path (``package.module:function``, ``package.module.function``, ``file.py:function``).
            ``None``: the reward of ``dataset``.
        dataset: the data set of the run. Rewards that have a ``dataset`` option (``composite``) get it.
        kwargs: options of the reward, by name.

    Raises:
        ConfigError: an unknown name (with near matches), an option that the reward does not take or lacks, or an
            installed package whose reward of that name cannot be loaded.
    """
    if name is None:
        if dataset is None:
            raise ConfigError("no reward: set reward.fn, or data.name to a data set that has a built-in reward")
        entry = find_reward(dataset)
        if entry is None:
            raise ConfigError(f"data.name={dataset!r} has no built-in reward; set reward.fn{offer(dataset)}")
        return _bind_entry(entry, dataset, kwargs)
    library, spec = split_library(name)
    if library is not None:
        from areal_x.reward.adapters import adapt

        return adapt(library, spec, kwargs, dataset)
    entry = find_reward(name, ask_packages="/" in name or not is_import_path(name))
    if entry is not None:
        return _bind_entry(entry, dataset, kwargs)
    if name.lower().startswith(BOXED) and not is_import_path(name):
        from areal_x.reward.boxed import boxed_reward

        return boxed_reward(name, dataset, kwargs)
    if not is_import_path(name):
        raise ConfigError(f"reward.fn={name!r} is unknown{offer(name)}")
    target = load_object(name, "reward.fn")
    if not callable(target):
        raise ConfigError(f"reward.fn={name!r} is not a function or a class")
    return _bind(target, name, dataset, kwargs)


def find_reward(name: str, ask_packages: bool = True) -> RewardEntry | None:
    """The reward of that name or data set; installed packages are asked only for what is not found without them.

    Raises:
        ConfigError: a package offers it, and cannot be loaded.
    """
    from areal_x.reward import entry_points

    _load_builtins()
    entry = _find_loaded(name)
    if entry is None and ask_packages:
        _load_entry_points()
        entry = _find_loaded(name)
    if entry is None or not entry.is_builtin:
        for key in _keys(name):
            entry_points.raise_failure(key)
    return entry


def _find_loaded(name: str) -> RewardEntry | None:
    for key in _keys(name):
        entry = _entries.get(_name_of_dataset.get(key, key))
        if entry is not None:
            return entry
    return None


def _keys(name: str) -> tuple[str, str]:
    return name.lower(), PurePosixPath(name.lower()).name


def offer(name: str) -> str:
    """What to write in place of the unknown ``name``: near names, or all; and the packages that were not loaded."""
    from areal_x.reward import entry_points

    known = sorted({*_entries, *_name_of_dataset})
    near = get_close_matches(PurePosixPath(name.lower()).name, known, n=3, cutoff=0.5)
    text = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; known: {', '.join(known)}"
    return text + "".join(f"; not loaded: {failure.error}" for failure in entry_points.failures())


def _bind_entry(entry: RewardEntry, dataset: str | None, kwargs: dict[str, Any]) -> RewardFn:
    """As ``_bind``; the keyword-only options of a registered function are bound even where nobody sets them, so that no
    column of the data is ever taken for one."""
    if not entry.is_class:
        parameters = inspect.signature(entry.target).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        kwargs = options | kwargs
    return _bind(entry.target, entry.name, dataset, kwargs)


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


def _load_entry_points() -> None:
    from areal_x.reward import entry_points

    entry_points.load(register_reward)
