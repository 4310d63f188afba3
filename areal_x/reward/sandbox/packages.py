"""Where installed distributions lie, so that only what was asked for can be imported in the sandbox."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from areal_x.api.errors import ConfigError

__all__ = ["installed_paths"]


def installed_paths(distributions: Iterable[str]) -> dict[str, str]:
    """Top-level name -> path, of the distributions and of all that they require.

    Raises:
        ConfigError: one is not installed.
    """
    paths: dict[str, str] = {}
    seen: set[str] = set()
    waiting = list(distributions)
    asked = set(waiting)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name not in asked:
                continue  # Required on other systems or Python versions only.
            raise ConfigError(f"sandbox package {name!r} is not installed; pip install {name}") from error
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not file.is_absolute():
                paths[top] = str(distribution.locate_file(top))
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                waiting.append(_distribution_name(requirement))
    return paths


def _distribution_name(requirement: str) -> str:
    end = next((place for place, letter in enumerate(requirement) if letter not in _NAME_LETTERS), len(requirement))
    return requirement[:end]


_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
