"""Constructs the workflow that a configuration names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import load_object, nearest
from areal_x.api.workflow_api import RolloutWorkflow

__all__ = ["build_workflow", "check_workflow_class", "load_workflow_class"]


def load_workflow_class(path: str, kwargs: Mapping[str, Any]) -> type[RolloutWorkflow]:
    """Import a workflow class; see that it is one, and that its constructor takes ``workflow.kwargs``.

    Raises:
        ConfigError: nothing there, not a workflow, or an argument that the constructor does not take.
    """
    found = load_object(path, "workflow.path")
    return check_workflow_class(f"workflow.path={path!r}", found, kwargs)


def check_workflow_class(source: str, found: Any, kwargs: Mapping[str, Any]) -> type[RolloutWorkflow]:
    """See that ``found`` is a workflow class whose constructor takes ``workflow.kwargs``.

    Args:
        source: where it comes from, for messages.

    Raises:
        ConfigError: it is not, or does not.
    """
    if not inspect.isclass(found) or not issubclass(found, RolloutWorkflow):
        raise ConfigError(f"{source} is not a subclass of areal_x.api.workflow_api.RolloutWorkflow")
    if inspect.isabstract(found):
        raise ConfigError(f"{source}: {found.__name__} lacks 'async def arun_episode(self, engine, data)'")
    if not inspect.iscoroutinefunction(found.arun_episode):
        raise ConfigError(f"{source}: {found.__name__}.arun_episode has to be 'async def'")
    parameters = _constructor_parameters(found)
    for key in kwargs:
        if key not in parameters:
            raise ConfigError(
                f"workflow.kwargs.{key} is not an argument of {found.__name__}{nearest(key, list(parameters))}"
            )
    return found


def build_workflow(
    workflow: str | type[RolloutWorkflow], available: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> RolloutWorkflow:
    """Import a workflow class and construct it.

    Args:
        workflow: ``package.module:Class``, ``package.module.Class`` or ``file.py:Class``; or the class itself.
        available: what the run offers by name (``reward_fn``, ``tokenizer``, ``sampling``, ``prompt_key``, ...); the
            constructor gets those that it takes.
        kwargs: ``workflow.kwargs`` of the configuration; the constructor has to take all of them. They win over
            ``available``.

    Raises:
        ConfigError: nothing there, not a workflow, or constructor arguments that do not fit.
    """
    if isinstance(workflow, str):
        found = load_workflow_class(workflow, kwargs)
    else:
        found = check_workflow_class(f"workflow={workflow!r}", workflow, kwargs)
    parameters = _constructor_parameters(found)
    arguments = {name: value for name, value in available.items() if name in parameters} | dict(kwargs)
    for name, parameter in parameters.items():
        if name not in arguments and parameter.default is inspect.Parameter.empty:
            offered = ", ".join(sorted(available))
            raise ConfigError(f"{found.__name__} needs workflow.kwargs.{name}; the run itself offers: {offered}")
    return found(**arguments)


def _constructor_parameters(workflow: type[RolloutWorkflow]) -> dict[str, inspect.Parameter]:
    """What the constructor takes by name; through ``**kwargs`` also what the constructors above it take."""
    parameters: dict[str, inspect.Parameter] = {}
    for cls in workflow.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        own = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        for parameter in own:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                parameters.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return parameters
