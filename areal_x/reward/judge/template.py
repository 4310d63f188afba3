"""Prompt templates: ``{name}`` stands for a text, and nothing else is evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from areal_x.api.errors import ConfigError

__all__ = ["PromptTemplate"]

_FIELD = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")
_ACCESS = re.compile(r"\{[A-Za-z_]\w*[.\[!:][^{}\n]*\}")


class PromptTemplate:
    """A text with named gaps.

    ``{name}`` is replaced by the value of that name, ``{{`` and ``}}`` stand for one brace, and any other brace stands
    for itself (so LaTeX and JSON need no escapes). Values are inserted as they are and not looked at again.

    Args:
        text: the template.
        option: what to call it in errors.

    Raises:
        ConfigError: it is no text, or asks for an attribute, an index or a format, as ``str.format`` would allow.
    """

    def __init__(self, text: object, option: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"reward 'judge': {option} must be a text that is not empty, got {text!r}")
        access = _ACCESS.search(text.replace("{{", "").replace("}}", ""))
        if access:
            raise ConfigError(
                f"reward 'judge': {option} holds {access.group()!r}; only plain names such as {{answer}} are filled "
                "in (write {{ and }} for braces that are meant as such)"
            )
        self._pieces: list[str] = []
        self._fields: list[str] = []
        piece, end = "", 0
        for match in _FIELD.finditer(text):
            piece += text[end : match.start()]
            end = match.end()
            if match.group(1) is None:
                piece += match.group()[0]
            else:
                self._pieces.append(piece)
                self._fields.append(match.group(1))
                piece = ""
        self._pieces.append(piece + text[end:])

    @property
    def names(self) -> frozenset[str]:
        """The names of its gaps."""
        return frozenset(self._fields)

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with its gaps filled; what is no text is written as JSON.

        Raises:
            KeyError: a name has no value.
        """
        parts = [self._pieces[0]]
        for field, piece in zip(self._fields, self._pieces[1:], strict=True):
            value = values[field]
            parts.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
            parts.append(piece)
        return "".join(parts)
