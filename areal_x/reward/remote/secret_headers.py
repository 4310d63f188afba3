"""Secret headers of a reward server: read from the environment, sent, and never shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from areal_x.api.errors import ConfigError

__all__ = ["SecretHeaders"]

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SHORTEST_WORD = 6


class SecretHeaders:
    """Headers whose values are environment variables.

    Args:
        variables: header -> name of the variable, or a text around it in braces (``Bearer {REWARD_TOKEN}``).

    Raises:
        ConfigError: a variable is not set, or a header or value cannot be sent.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._values = {header: _value(header, text) for header, text in variables.items()}
        words = {word for value in self._values.values() for word in value.split() if len(word) >= _SHORTEST_WORD}
        shown = sorted({*self._values.values(), *words}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, shown))) if shown else None

    def __repr__(self) -> str:
        return f"SecretHeaders({', '.join(self._values)})"

    def values(self) -> dict[str, str]:
        """The headers to send."""
        return dict(self._values)

    def hide(self, text: str) -> str:
        """``text`` without the secrets, which a server may have repeated in it."""
        return text if self._pattern is None else self._pattern.sub("<secret>", text)


def _value(header: str, text: str) -> str:
    if not _HEADER_NAME.fullmatch(header):
        raise ConfigError(f"headers_env: {header!r} is not the name of an HTTP header")
    parts = re.fullmatch(r"([^{}]*)\{(\w+)\}([^{}]*)|(\w+)", text)
    if parts is None:
        raise ConfigError(
            f"headers_env.{header} must name an environment variable, such as REWARD_TOKEN or Bearer {{REWARD_TOKEN}}"
        )
    before, name, after = (parts[1], parts[2], parts[3]) if parts[2] else ("", parts[4], "")
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"headers_env.{header}: the environment variable {name} is not set")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(f"headers_env.{header}: the value of {name} has characters that a header cannot carry")
    return f"{before}{value}{after}"
