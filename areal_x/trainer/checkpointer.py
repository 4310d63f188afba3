"""Writes checkpoints while training goes on.

    after a step ──▶ copy the state of the engines (training waits) ──▶ write it ──▶ commit
                     snapshot of the rollouts, positions of files       └─ in the background ─┘

What is copied belongs together: no weights change, and the trainer takes no groups, between the end of a step and the
return of ``begin``. One checkpoint is under way at a time. One that fails is counted and removed; training goes on, up
to ``checkpoint.max_failures_in_a_row``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from areal_x.api.config import CheckpointConfig
from areal_x.api.errors import CheckpointError
from areal_x.observe.display import RunDisplay
from areal_x.observe.line_file import RunWriteError
from areal_x.observe.run_writer import RunWriter
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.rollout_state import RolloutSnapshot
from areal_x.trainer.checkpoint_files import described
from areal_x.trainer.checkpoint_store import CheckpointStore
from areal_x.trainer.exports import EXPORTS, MODEL_FILES
from areal_x.trainer.trainer_thread import TrainerThread

__all__ = ["ROLLOUT", "Checkpointed", "Checkpointer"]

ROLLOUT = "rollout"
"""Folder of a checkpoint with the state of the rollouts; those of engines have the names of their roles."""
_END_SECONDS = 600.0


class Checkpointed(Protocol):
    """What an engine does for a checkpoint; see ``TrainEngine``."""

    def begin_checkpoint(self, path: Path) -> None: ...

    def end_checkpoint(self) -> None: ...


@dataclass
class CheckpointTotals:
    """What is reported of the checkpoints of this process."""

    written: int = 0
    failed: int = 0
    last: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Running totals, and seconds and bytes of the last checkpoint; nothing before the first."""
        if not self.written + self.failed:
            return {}
        totals = {"checkpoint/written": float(self.written), "checkpoint/failed": float(self.failed)}
        return totals | {f"checkpoint/{name}": value for name, value in self.last.items()}


class Checkpointer:
    """The checkpoints of one run.

    Args:
        store: where they are kept.
        total_steps: after the last step there is one in any case.
        engines: what has a state, by role; ``on_ranks``: they are asked on the trainer's thread only.
        thread: the trainer's.
        facts: further facts of the run at a step, for ``Checkpoint.facts``.
        write_model: writes configuration and tokenizer of the policy into a new directory.
        export: writes the policy in Hugging Face format to a new directory.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        store: CheckpointStore,
        *,
        total_steps: int,
        engines: Mapping[str, Checkpointed],
        on_ranks: bool,
        executor: RolloutExecutor,
        thread: TrainerThread,
        writer: RunWriter,
        display: RunDisplay,
        facts: Callable[[], dict[str, Any]],
        write_model: Callable[[Path], None],
        export: Callable[[Path], Path],
    ) -> None:
        self._config = config
        self._store = store
        self._total_steps = total_steps
        self._engines = dict(engines)
        self._on_ranks = on_ranks
        self._executor = executor
        self._thread = thread
        self._writer = writer
        self._display = display
        self._facts = facts
        self._write_model = write_model
        self._export = export
        self._background = TrainerThread("checkpoint")
        self._totals = CheckpointTotals()
        self._writing: asyncio.Task[None] | None = None
        self._may_end = asyncio.Event()

    def is_due(self, step: int) -> bool:
        """Whether there is a checkpoint after ``step``."""
        every = self._config.every_steps
        return every > 0 and (step % every == 0 or step == self._total_steps)

    def is_export_due(self, step: int) -> bool:
        """Whether the policy is exported after ``step``."""
        every = self._config.export_every_steps
        return every > 0 and step % every == 0

    def metrics(self) -> dict[str, float]:
        """See ``CheckpointTotals.metrics``."""
        return self._totals.metrics()

    def on_step_trained(self) -> None:
        """A step has ended since ``begin``: ranks may be asked for the end of their writing."""
        self._may_end.set()

    async def begin(self, step: int, version: int, group: asyncio.TaskGroup, report: Callable[[], None]) -> None:
        """Take the checkpoint of ``step``; when this returns, everything may change. It is written in ``group``.

        Args:
            version: of the weights.
            report: writes down all of the step; called while the engines copy.

        Raises:
            CheckpointError: too many failed in a row.
        """
        await self._end_last()
        started = time.monotonic()
        try:
            partial = self._store.begin(step)
        except CheckpointError as refused:
            report()
            self._give_up(step, refused)
            return
        copying = group.create_task(self._thread.call(self._begin_engines, partial), name="copy a checkpoint")
        await asyncio.sleep(0)  # The thread begins.
        report()
        snapshot, positions = self._executor.snapshot(), self._writer.positions(step)
        facts = {"step": step, "version": version, "files": positions.as_facts()} | self._facts()
        begun, error = await copying
        blocked_seconds = time.monotonic() - started
        self._writer.add_span("checkpoint", f"copy of step {step}", started, time.monotonic())
        self._may_end.clear()
        self._writing = group.create_task(
            self._write(step, partial, begun, error, snapshot, facts, blocked_seconds), name="write a checkpoint"
        )

    async def export(self, step: int) -> None:
        """Write the policy under ``exports/``, while nothing trains.

        Raises:
            CheckpointError: it cannot be written.
        """
        started = time.monotonic()
        await self._thread.call(self._export, self._writer.run_dir / EXPORTS / f"step_{step:06d}")
        self._writer.add_span("checkpoint", f"export of step {step}", started, time.monotonic())

    async def finish(self) -> None:
        """Wait for the checkpoint under way.

        Raises:
            CheckpointError: it could not be written, as one of too many.
        """
        self._may_end.set()
        await self._end_last()

    def close(self) -> None:
        """Let its thread end, whatever became of the run."""
        self._background.close()

    async def _end_last(self) -> None:
        if self._writing is None:
            return
        self._may_end.set()
        done, _ = await asyncio.wait([self._writing], timeout=_END_SECONDS)
        if not done:
            raise CheckpointError(f"a checkpoint was not written within {_END_SECONDS:g} s; is the disk there?")
        self._writing = None

    def _begin_engines(self, partial: Path) -> tuple[list[Checkpointed], CheckpointError | None]:
        """Let each engine copy its state; gives those that began, and what went wrong with the next. On the thread."""
        begun: list[Checkpointed] = []
        for role, engine in self._engines.items():
            try:
                engine.begin_checkpoint(partial / role)
            except CheckpointError as error:
                return begun, error
            begun.append(engine)
        return begun, None

    async def _write(
        self,
        step: int,
        partial: Path,
        begun: Sequence[Checkpointed],
        error: CheckpointError | None,
        snapshot: RolloutSnapshot,
        facts: dict[str, Any],
        blocked_seconds: float,
    ) -> None:
        started = time.monotonic()
        if error is None:
            error = await self._background.call(self._write_files, snapshot, partial)
        if self._on_ranks:
            await self._may_end.wait()
        for engine in begun:
            ended = await (self._thread if self._on_ranks else self._background).call(_end_of, engine)
            error = error or ended
        if error is None:
            error = await self._background.call(self._commit, step, facts)
        ended_at = time.monotonic()
        self._writer.add_span("checkpoint", f"write step {step}", started, ended_at)
        self._totals.last |= {"blocked_seconds": blocked_seconds, "write_seconds": ended_at - started}
        if error is not None:
            self._give_up(step, error)
        else:
            self._totals.written += 1

    def _write_files(self, snapshot: RolloutSnapshot, partial: Path) -> CheckpointError | None:
        """What is not of the engines."""
        try:
            (partial / ROLLOUT).mkdir()
            snapshot.write(partial / ROLLOUT)
            self._write_model(partial / MODEL_FILES)
        except OSError as error:
            return CheckpointError(f"checkpoint {partial}: {described(error)}")
        except CheckpointError as error:
            return error
        return None

    def _commit(self, step: int, facts: dict[str, Any]) -> CheckpointError | None:
        try:
            self._writer.sync()  # What the checkpoint says of the files must be true after a loss of power, too.
            checkpoint = self._store.commit(step, facts)
        except (CheckpointError, RunWriteError) as error:
            return error if isinstance(error, CheckpointError) else CheckpointError(str(error))
        self._totals.last["bytes"] = _size_of(checkpoint.path)
        return None

    def _give_up(self, step: int, error: CheckpointError) -> None:
        self._totals.failed += 1
        self._display.print(f"step {step}: no checkpoint, training goes on: {error}")
        self._store.abandon(step, error)


def _end_of(engine: Checkpointed) -> CheckpointError | None:
    try:
        engine.end_checkpoint()
    except CheckpointError as error:
        return error
    return None


def _size_of(path: Path) -> float:
    return float(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
