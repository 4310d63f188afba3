"""What every kind of run opens first and closes last: its data, directory, files, display and thread."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from areal_x.api.config import ExperimentConfig
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.trainer import roles
from areal_x.trainer.given import Given
from areal_x.trainer.resume import Resumption
from areal_x.trainer.run_directory import create_run_directory, lock_directory
from areal_x.trainer.trainer_thread import TrainerThread

__all__ = ["Run", "open_files", "open_run"]


@dataclass
class Run:
    """What every kind of run has: its data, directory, writer and display, and the thread for all that takes long."""

    config: ExperimentConfig
    data: roles.Data
    directory: Path
    writer: RunWriter
    display: RunDisplay
    thread: TrainerThread
    given: Given = field(default_factory=Given)
    resumed: Resumption | None = None
    """Where it goes on; ``None``: it begins anew."""

    @property
    def steps_done(self) -> int:
        """Steps of the run that goes on here; 0 of a new one."""
        return 0 if self.resumed is None else self.resumed.step

    def needs_evaluation(self) -> bool:
        """Whether the weights that the run begins or goes on with are still to be measured."""
        if self.resumed is None:
            return True
        every, step = self.config.evaluation.every_steps, self.resumed.step
        is_due = step >= self.config.train.total_steps or (every > 0 and step % every == 0)
        return is_due and not self.resumed.has_evaluation()

    def add_rollout_span(self, lane: str, start: float, end: float) -> None:
        """Report what an episode did; the episode as a whole would only repeat its parts."""
        if lane != "episode":
            self.writer.add_span(lane, "", start, end)


@asynccontextmanager
async def open_run(
    config: ExperimentConfig, total_steps: int, given: Given | None = None, resumed: Resumption | None = None
) -> AsyncIterator[Run]:
    """Read the data, make the directory, open the files; close them whatever happens. A run that is ``resumed`` goes on
    in its directory, whose files are cut back to the checkpoint."""
    # Everything slow runs on the thread, never on the loop, so that an interrupt is answered at any moment.
    thread = TrainerThread()
    data = await thread.call(roles.load_data, config)
    if resumed is not None:
        await thread.call(resumed.check_data, data.train, config)
    async with open_files(config, total_steps, thread, resumed) as (directory, writer, display):
        yield Run(config, data, directory, writer, display, thread, given or Given(), resumed)


@asynccontextmanager
async def open_files(
    config: ExperimentConfig, total_steps: int, thread: TrainerThread, resumed: Resumption | None = None
) -> AsyncIterator[tuple[Path, RunWriter, RunDisplay]]:
    """The directory of a run, its files and its display; closed, and the thread with them, whatever happens."""
    directory = create_run_directory(config) if resumed is None else resumed.directory
    lock = lock_directory(directory)
    if resumed is not None:
        await thread.call(resumed.cut_back, config.checkpoint)
    text, files = OmegaConf.to_yaml(OmegaConf.structured(config)), None if resumed is None else resumed.files
    writer = RunWriter(directory, text, config.observe, config.name, files)
    display = RunDisplay(total_steps, progress=config.observe.progress)
    status = "failed"
    try:
        yield directory, writer, display
        status = "finished"
    except asyncio.CancelledError:
        status = "interrupted"
        raise
    finally:
        thread.close()
        display.close()
        writer.close(status)
        lock.close()
        is_empty = not (directory / "metrics.jsonl").stat().st_size and not (directory / "skipped").exists()
        if status == "failed" and is_empty and resumed is None:
            shutil.rmtree(directory)  # Nothing was reported yet: a wrong setting leaves no numbered directories behind.
