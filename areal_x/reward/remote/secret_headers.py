"""Secret headers of a reward server: read from the environment, sent, and never shown."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from areal_x.api.errors import ConfigError

__all__ = ["SecretHeaders"]

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VARIABLE = re.compile(r"([^{}]*)\{([A-Z_][A-Z0-9_]*)\}([^{}]*)|([A-Z_][A-Z0-9_]*)")
_SHORTEST_WORD = 6


class SecretHeaders:
    """Headers whose values are environment variables.

    Args:
        variables: header -> name of the variable, or a text around it in braces (``Bearer {REWARD_TOKEN}``).

    Raises:
        ConfigError: a variable is not set, or a header or value cannot be sent.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._values: dict[str, str] = {}
        words: set[str] = set()
        for header, text in variables.items():
            self._values[header], secret = _value(header, text)
            words |= {word for word in (secret, *secret.split()) if len(word) >= _SHORTEST_WORD}
        forms = {form for value in {*self._values.values(), *words} for form in _forms(value)}
        alternatives = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
        self._pattern = re.compile(alternatives, re.IGNORECASE) if forms else None
        self.longest = max(map(len, forms), default=0)
        """Characters of the longest form in which a secret is recognised."""

    def __repr__(self) -> str:
        return f"SecretHeaders({', '.join(self._values)})"

    def values(self) -> dict[str, str]:
        """The headers to send."""
        return dict(self._values)

    def hide(self, text: str, limit: int | None = None) -> str:
        """``text``, or its first ``limit`` characters, without the secrets, which a server may have repeated in it.

        A secret across the cut is hidden whole, so ``text`` must go on for ``longest`` characters after it, or be
        complete: part of a secret cannot be recognised.
        """
        end = len(text) if limit is None else limit
        parts, begin = [], 0
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            if match.start() >= end:
                break
            parts += [text[begin : match.start()], "<secret>"]
            begin = match.end()
        return "".join([*parts, text[begin : max(begin, end)]])

    def hide_in(self, value: Any) -> Any:
        """A JSON value with the secrets hidden in all its texts, the names of keys among them."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.hide_in(one) for one in value]
        if isinstance(value, dict):
            return {self.hide(name): self.hide_in(one) for name, one in value.items()}
        return value


def _forms(value: str) -> set[str]:
    """``value`` as it is, and escaped as JSON, Python, URLs and HTML do."""
    in_json = json.dumps(value)[1:-1]
    in_urls = (quote(value), quote(value, safe=""))
    return {value, in_json, in_json.replace("/", "\\/"), repr(value)[1:-1], *in_urls, html.escape(value)}


def _value(header: str, text: str) -> tuple[str, str]:
    """The header's value, and what of it comes from the environment."""
    if not _HEADER_NAME.fullmatch(header):
        raise ConfigError(f"headers_env: {header!r} is not the name of an HTTP header")
    parts = _VARIABLE.fullmatch(text) if isinstance(text, str) else None
    if parts is None:
        # The text is not shown: it may be the secret itself, put there by mistake.
        raise ConfigError(
            f"headers_env.{header} must name an environment variable in capitals, such as REWARD_TOKEN or "
            "Bearer {REWARD_TOKEN}"
        )
    before, name, after = (parts[1], parts[2], parts[3]) if parts[2] else ("", parts[4], "")
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"headers_env.{header}: the environment variable {name} is not set")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(f"headers_env.{header}: the value of {name} has characters that a header cannot carry")
    return f"{before}{value}{after}", value
