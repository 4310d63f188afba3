"""The ranks of a run: started, watched all the time, and closed whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from areal_x.api.config import ExperimentConfig
from areal_x.engine.placement import Placement
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.trainer.trainer_thread import TrainerThread

__all__ = ["RANK_LOGS", "open_ranks"]

RANK_LOGS = "ranks"
"""Folder of a run in which ``rank<N>.log`` has what rank N printed."""


@asynccontextmanager
async def open_ranks(
    config: ExperimentConfig, placement: Placement, directory: Path, thread: TrainerThread
) -> AsyncIterator[RankGroup | None]:
    """The ranks that train; ``None`` where the run's own process does. A rank that ends, ends the body with the cause.

    Args:
        directory: of the run.
        thread: on which they are started, and called.
    """
    # Should this be cancelled while they start, nobody holds them; they end with this process.
    ranks = await thread.call(placement.start_ranks, config.train, config.model.device, directory / RANK_LOGS)
    if ranks is None:
        yield None
        return
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(asyncio.to_thread(ranks.watch), name="watch the ranks")
        try:
            yield ranks
        finally:
            watching.cancel()
            ranks.close()
