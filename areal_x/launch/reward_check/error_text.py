"""Short forms of texts that come from users' code or models: tracebacks, prompts, completions."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["clipped", "digest"]

_MACHINERY = re.compile(r"[/\\]areal_x[/\\](?:api|process_pool|reward[/\\]adapters)[/\\]")
"""Files between a run and the reward's own code."""
_FILE_LINE = re.compile(r'^\s*File "([^"]+)", line (\d+)', re.MULTILINE)


def digest(error: str) -> tuple[str, str]:
    """The last line of a traceback (``ValueError: ...``) and where it was raised (``reward.py:3``, or nothing).

    What called the reward, and what it called in an adapter, is none of its places.
    """
    trace = error.partition("\nprinted:\n")[0].rstrip()
    places = _FILE_LINE.findall(trace)
    own = [(file, line) for file, line in places if not _MACHINERY.search(file)]
    place = f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
    return trace.rpartition("\n")[2] if places else trace, place


def clipped(text: str, length: int) -> str:
    """``text`` on one line, its middle left out when it is long. Nothing in it can move a terminal's cursor."""
    if len(text) > length:
        tail = length // 3
        text = f"{text[: length - tail - 3]} … {text[-tail:]}"
    shown = text.replace("\n", "⏎")
    # Bidirectional marks and escape sequences come from models, too; repr shows what cannot be printed.
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in shown)
