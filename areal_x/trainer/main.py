"""What a configuration is used for: train, fine-tune, train a reward model, evaluate. One session on one event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from transformers.utils import logging as transformers_logging

from areal_x.api.config import ExperimentConfig
from areal_x.trainer.evaluation_session import run_evaluation
from areal_x.trainer.given import Given
from areal_x.trainer.reward_model_training import run_reward_training
from areal_x.trainer.session import run_training
from areal_x.trainer.supervised_session import run_supervised

__all__ = ["INTERRUPTED", "SESSIONS", "first_cause", "leave_at_once", "loop_factory", "run_session"]

INTERRUPTED = 130
SESSIONS: dict[str, Callable[[ExperimentConfig, Given], Coroutine[Any, Any, None]]] = {
    "train": run_training,
    "sft": run_supervised,
    "train-rm": run_reward_training,
    "eval": run_evaluation,
}
"""What each command runs."""


def run_session(command: str, config: ExperimentConfig, given: Given | None = None) -> int:
    """Run one command on a fresh event loop (uvloop where it is installed). SIGTERM ends it as Ctrl-C does.

    Returns:
        The exit status: 0, or ``INTERRUPTED`` when all files are written and closed, though a training step may still
        be in progress in its thread.

    Raises:
        ArealXError: the run failed; its message has the cause.
    """
    transformers_logging.disable_progress_bar()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_until_terminated(SESSIONS[command](config, given or Given())))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseExceptionGroup as group:
        raise first_cause(group) from None
    return 0


async def _until_terminated(session: Coroutine[Any, Any, None]) -> None:
    """Turn SIGTERM into the interrupt that the runner already handles; SIGUSR1 says what everything waits for."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    loop.add_signal_handler(signal.SIGUSR1, _print_waits)
    await session


def _print_waits() -> None:
    """Where each kind of task waits, and how many of them, on standard error: for a run that seems to stand still."""
    places = Counter((_name_of(task), _innermost_wait(task)) for task in asyncio.all_tasks())
    for (name, place), count in places.most_common():
        print(f"{count:>6} x {name}: {place}", file=sys.stderr)


def _name_of(task: asyncio.Task[Any]) -> str:
    name = task.get_name()
    return getattr(task.get_coro(), "__qualname__", name) if name.startswith("Task-") else name


def _innermost_wait(task: asyncio.Task[Any]) -> str:
    coroutine: Any = task.get_coro()
    place = "about to start"
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        place = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        coroutine = coroutine.cr_await
    return place


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop of a run: uvloop's where it is installed, else Python's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def first_cause(error: BaseException) -> BaseException:
    """The first error that is not a group: what a person wants to read."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def leave_at_once(goes_on: bool) -> None:
    """Leave without waiting for a training step in progress: all files are written and closed by now. ``goes_on``: the
    run takes checkpoints."""
    hint = "; resume=auto goes on after its last checkpoint, if it has one" if goes_on else ""
    print(f"areal-x: interrupted; everything reported so far is in the run's directory{hint}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)
