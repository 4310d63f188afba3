"""The table of ``areal-x reward list``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from areal_x.reward.entry_points import failures
from areal_x.reward.registry import LIBRARIES, RewardEntry, list_rewards

__all__ = ["reward_list", "reward_table"]

_HEADINGS = ("name", "data sets", "extracts", "returns")
_WIDTHS = (16, 26, 42, 30)
"""With two blanks between columns, 120 at most."""


def reward_list() -> str:
    """All rewards as a table, then the prefixes that a name may have, then the packages that could not be loaded."""
    lines = [
        reward_table(list_rewards()),
        "",
        "boxed_NAME: any of them on the last \\boxed{} of the completion",
        f"{', '.join(f'{library}:SPEC' for library in LIBRARIES)}: a reward function written for that library",
        "package.module:NAME, file.py:NAME: a function or class of your own",
    ]
    lines += [f"not loaded: {failure.error}" for failure in failures()]
    return "\n".join(lines)


def reward_table(entries: Iterable[RewardEntry]) -> str:
    """Aligned columns; long cells go on in the next line. No line is longer than 120 characters."""
    rows = [_HEADINGS, tuple("-" * len(heading) for heading in _HEADINGS)]
    rows += [
        (entry.name, ", ".join(entry.datasets), entry.extracts or entry.summary, entry.returns) for entry in entries
    ]
    return "\n".join(line for row in rows for line in _lines(row))


def _lines(row: Sequence[str]) -> list[str]:
    cells = [
        textwrap.wrap(cell, width, break_on_hyphens=False) or [""] for cell, width in zip(row, _WIDTHS, strict=True)
    ]
    height = max(map(len, cells))
    padded = [cell + [""] * (height - len(cell)) for cell in cells]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, _WIDTHS, strict=True)).rstrip()
        for parts in zip(*padded, strict=True)
    ]
