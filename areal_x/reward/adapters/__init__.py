"""Reward functions written for other libraries, run as they are.

``slime:pkg.mod.custom_rm`` names a library and a function of the user's. The adapter of that library turns a
``RewardSample`` into the arguments that the library gives, and what comes back into a reward::

    RewardSample(s) -- Adapter.call --> their arguments -- the user's function --> their result -- Call.read --> rewards

``SampleReward`` and its kin (``calling.py``) run the function: plain in a worker process, ``async def`` on the loop.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import nearest
from areal_x.api.reward_records import ScoredSample
from areal_x.reward.adapters.calling import Adapter, make_reward
from areal_x.reward.adapters.library_function import LibraryFunction

__all__ = ["adapt", "adapt_post_process"]

_ADAPTERS = {
    "areal": ("areal", "ArealAdapter"),
    "openrlhf": ("openrlhf", "OpenRLHFAdapter"),
    "slime": ("slime", "SlimeAdapter"),
    "trl": ("trl", "TRLAdapter"),
    "verl": ("verl", "VerlAdapter"),
}
"""For each library: the module and the class of its adapter."""


def adapt(library: str, spec: str, kwargs: Mapping[str, Any], dataset: str | None = None) -> Callable[..., Any]:
    """The reward that a function written for ``library`` is.

    Args:
        library: one of ``areal_x.api.import_paths.LIBRARIES``.
        spec: ``package.module.function``, ``package.module:function`` or ``file.py:function``; the library's own forms,
            too (``file.py`` for OpenRLHF, ``file.py::compute_score`` for verl).
        kwargs: ``reward.kwargs``: options of the adapter, and what that library's configuration would give the
            function.
        dataset: name of the run's data set, verl's ``data_source`` where the data has none.

    Returns:
        A reward of one sample, or of a group (then it has ``is_group_reward = True``). A plain function's reward
        pickles as its spec, so that the module is imported once, in the pool's helper process.

    Raises:
        ConfigError: no such library or function; an option that the function does not take.
    """
    if library not in _ADAPTERS:
        raise ConfigError(
            f"reward.fn={library + ':' + spec!r}: there is no adapter for {library!r}"
            f"{nearest(library, sorted(_ADAPTERS)) or '; known: ' + ', '.join(sorted(_ADAPTERS))}"
        )
    module, class_name = _ADAPTERS[library]
    adapter_class: type[Adapter] = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    adapter_class.check_spec(spec)
    function = LibraryFunction(library, spec, adapter_class.default_function)
    adapter = adapter_class(function, dict(kwargs), dataset)
    return make_reward(adapter, adapt, (library, function.absolute_spec, dict(kwargs), dataset))


def adapt_post_process(
    library: str, spec: str, kwargs: Mapping[str, Any]
) -> Callable[[Sequence[ScoredSample]], tuple[list[float], list[float]]]:
    """The hook ``(samples) -> (raw, processed)`` that slime's ``(args, samples) -> (raw, processed)`` is.

    Raises:
        ConfigError: the library has no such hook, or there is no such function.
    """
    if library != "slime":
        raise ConfigError(f"{library + ':' + spec!r}: only slime has a hook for rewards of a batch; write slime:{spec}")
    from areal_x.reward.adapters.slime import SlimePostProcess

    return SlimePostProcess(LibraryFunction(library, spec, None), dict(kwargs))
