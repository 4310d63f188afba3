"""What a training session keeps in its checkpoints, and takes from one when it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from areal_x.api.errors import CheckpointError
from areal_x.engine.train.ranked_engine import RankedTrainEngine
from areal_x.rollout.data_stream import DataStream
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.rollout_state import RolloutState, read_rollout_state
from areal_x.trainer import roles
from areal_x.trainer.checkpoint_identity import run_identity
from areal_x.trainer.checkpoint_store import CHECKPOINTS, CheckpointStore
from areal_x.trainer.checkpointer import ROLLOUT, Checkpointed, Checkpointer
from areal_x.trainer.exports import write_export, write_model_files
from areal_x.trainer.open_run import Run
from areal_x.trainer.resume import INITIAL_MODEL, plain_config
from areal_x.trainer.step_report import StepReporter

__all__ = [
    "Restorable",
    "first_model",
    "make_checkpointer",
    "make_store",
    "record_best",
    "restore_engines",
    "start_rollouts",
    "tell_resumption",
]


class Restorable(Checkpointed, Protocol):
    """An engine whose state a checkpoint holds; see ``TrainEngine``."""

    def restore_checkpoint(self, path: Path) -> None: ...


def first_model(run: Run) -> str:
    """The model that the run begins with: ``model.path``, or the one that it makes; one that goes on has made it."""
    if run.resumed is not None and run.config.model.path is None:
        return str(run.directory / INITIAL_MODEL)
    return roles.prepare_model(run.config, run.directory, run.data)


def tell_resumption(run: Run) -> None:
    """Say where the run goes on, and what is not as it was."""
    if run.resumed is None:
        return
    changed = f"; changed: {', '.join(run.resumed.changes)}" if run.resumed.changes else ""
    run.display.print(f"{run.directory} goes on after step {run.resumed.step}{changed}")


def restore_engines(run: Run, engines: Mapping[str, Restorable], train_engine: roles.PolicyEngine) -> None:
    """Take over the state of each engine, by role, and the version of the weights. On the trainer's thread.

    Raises:
        CheckpointError: one is missing, or is of another model.
    """
    assert run.resumed is not None
    for role, engine in engines.items():
        engine.restore_checkpoint(run.resumed.checkpoint.path / role)
    train_engine.release_memory()
    train_engine.version = run.resumed.version


def start_rollouts(run: Run, stream: DataStream) -> RolloutState | None:
    """Where rollouts go on, with the stream at the first item that was not drawn; ``None``: they begin.

    Raises:
        CheckpointError: the state cannot be read.
        DataError: the data are not those of the checkpoint.
    """
    if run.resumed is None:
        return None
    checkpoint = run.resumed.checkpoint
    stream.load_state_dict(checkpoint.facts["stream"])
    state = read_rollout_state(checkpoint.path / ROLLOUT, stream.item_at)
    if state.next_group_id != stream.num_drawn:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: {state.next_group_id} groups were begun, and {stream.num_drawn} items drawn"
        )
    return state


def make_store(run: Run, model_path: str) -> CheckpointStore:
    """The checkpoints of a run whose policy began as the model at ``model_path``."""
    identity = run_identity(run.config, model_path)
    return CheckpointStore(run.directory / CHECKPOINTS, run.config.checkpoint, identity)


def record_best(run: Run, store: CheckpointStore) -> Callable[[int, Mapping[str, float]], None]:
    """What tells the store how good the weights after a step are: ``record(step, metrics)``."""
    name = run.config.checkpoint.best_metric

    def record(step: int, metrics: Mapping[str, float]) -> None:
        if name is not None and name in metrics:
            store.record_metric(step, metrics[name])

    return record


def make_checkpointer(
    run: Run,
    store: CheckpointStore,
    engines: Mapping[str, Checkpointed],
    *,
    model_path: str,
    tokenizer: Any,
    train_engine: roles.PolicyEngine,
    executor: RolloutExecutor,
    stream: DataStream,
    reporter: StepReporter,
) -> Checkpointer:
    """What takes the checkpoints of a run.

    Args:
        engines: whose states they hold, by role.
        model_path: of the policy before the first step.
    """
    config = run.config
    settings = plain_config(config)

    def facts() -> dict[str, Any]:
        return {"stream": stream.state_dict(), "totals": reporter.totals(), "config": settings}

    def write_model(folder: Path) -> None:
        write_model_files(folder, model_path, tokenizer, config.model.trust_remote_code)

    def export(folder: Path) -> Path:
        return write_export(folder, train_engine.save, tokenizer)

    return Checkpointer(
        config.checkpoint,
        store,
        total_steps=config.train.total_steps,
        engines=engines,
        on_ranks=isinstance(train_engine, RankedTrainEngine),
        executor=executor,
        thread=run.thread,
        writer=run.writer,
        display=run.display,
        facts=facts,
        write_model=write_model,
        export=export,
    )
