"""Whether the functions of the objective take their arguments, without loading torch for those that are built in."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from areal_x.api.bound_functions import bound_function
from areal_x.api.config import AlgorithmConfig
from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import is_import_path

__all__ = ["built_in_arguments", "check_objective_function"]

_MODULES = {"policy_loss": "losses", "correction": "corrections"}
_CLIPS = ("clip_low", "clip_high", "dual_clip")


def check_objective_function(algorithm: AlgorithmConfig, field: str) -> None:
    """Check the function that ``algorithm.policy_loss`` or ``algorithm.correction`` names, and its arguments.

    Raises:
        ConfigError: there is no such function, or it does not take them.
    """
    name: str = getattr(algorithm, field)
    kwargs: Mapping[str, Any] = getattr(algorithm, f"{field}_kwargs")
    key = f"algorithm.{field}"
    settings = {clip: getattr(algorithm, clip) for clip in _CLIPS} if field == "policy_loss" else {}
    if is_import_path(name):
        bound_function(key, name, {}, kwargs, settings)
        return
    if name == "none":
        return
    arguments = built_in_arguments(_MODULES[field])[name]
    for argument in kwargs:
        if argument in settings and argument in arguments:
            raise ConfigError(f"{key}_kwargs.{argument}: is a field of its own; set algorithm.{argument}")
        own = sorted(set(arguments) - set(settings))
        if argument not in own:
            valid = f"it takes {', '.join(own)}" if own else "it takes none"
            raise ConfigError(f"{key}_kwargs.{argument}: {name} has no such argument; {valid}")


def built_in_arguments(module: str) -> dict[str, list[str]]:
    """The keyword arguments of each function of a module of the objective, read from its source."""
    spec = find_spec(f"areal_x.engine.train.objective.{module}")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: [argument.arg for argument in node.args.kwonlyargs] for node in functions}
