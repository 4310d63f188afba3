"""A reward that waits for one second on every sample, as a judge would. Used by ``bench_trl.py``."""

from __future__ import annotations

import asyncio


async def slow_exact(completions: str, answer: str) -> float:
    """1 for a completion that equals the answer column, else 0, after one second."""
    await asyncio.sleep(1.0)
    return float(completions.strip() == answer)
