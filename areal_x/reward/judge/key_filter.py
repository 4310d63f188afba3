"""Takes a server's key out of what the server says."""

from __future__ import annotations

import re

__all__ = ["KeyFilter"]

_SHORTEST_SECRET = 8
"""A shorter key, such as a placeholder, is no secret, and may be a word of any reply."""


class KeyFilter:
    """Replaces the key by ``***``, also where JSON spells its letters otherwise (``\\/`` or ``\\u002f`` for ``/``).

    Args:
        key: printable ASCII; None: there is none.
    """

    def __init__(self, key: str | None) -> None:
        is_secret = key is not None and len(key) >= _SHORTEST_SECRET
        self._pattern = re.compile("".join(map(_spellings, key))) if key is not None and is_secret else None
        self._key = key

    def clean(self, text: str) -> str:
        """``text`` without the key."""
        if self._pattern is None or self._key is None:
            return text
        if self._key in text:
            text = text.replace(self._key, "***")
        # The pattern is much slower than looking for the plain key, and finds more only among escapes.
        return self._pattern.sub("***", text) if "\\" in text else text


def _spellings(letter: str) -> str:
    escaped = rf"\\{re.escape(letter)}|" if letter in '"\\/' else ""
    return rf"(?:{escaped}{re.escape(letter)}|(?i:\\u{ord(letter):04x}))"
