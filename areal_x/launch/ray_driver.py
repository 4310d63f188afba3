"""The loop itself on a Ray cluster (``cluster.driver_on_cluster=true``), seen from the user's terminal.

    this process ──configuration, files, objects──▶ DriverActor ──▶ session (ranks, servers, loop)
         ▲                                              │
         └────────── what it prints, its end ───────────┘

Objects travel by cloudpickle on Ray's own channels. The run ends with this process; Ctrl-C is passed on and answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import EngineDiedError
from areal_x.launch.ray_cluster import RayCluster
from areal_x.launch.run import placed
from areal_x.launch.sent_files import pack_files, unpack_files
from areal_x.trainer.given import Given
from areal_x.trainer.main import INTERRUPTED, SESSIONS, first_cause

__all__ = ["DriverActor", "Printed", "run_on_cluster"]

_STOP_SECONDS = 30.0
_LAST_SECONDS = 5.0


class Printed:
    """A text stream whose lines are fetched from elsewhere, in their order. Stands in for standard output."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._more = asyncio.Event()
        self._is_over = False
        self._loop = asyncio.get_running_loop()

    def write(self, text: str) -> int:
        """Keep it for ``fetch``. Safe from any thread."""
        self._text.append(text)
        self._loop.call_soon_threadsafe(self._more.set)
        return len(text)

    def flush(self) -> None:
        """Everything is there already."""

    def isatty(self) -> bool:
        """Not a terminal: no progress bars."""
        return False

    def end(self) -> None:
        """Nothing more will come."""
        self._is_over = True
        self._more.set()

    async def fetch(self) -> tuple[str, bool]:
        """Wait for text that was not fetched yet; it, and whether it is the last."""
        await self._more.wait()
        if not self._is_over:
            self._more.clear()
        text, self._text = "".join(self._text), []
        return text, self._is_over


class DriverActor:
    """Runs one command on a node of the cluster. Its event loop is the one that Ray gives an actor."""

    def __init__(self) -> None:
        self._printed: Printed | None = None
        self._has_begun = asyncio.Event()

    async def run(
        self, command: str, config: ExperimentConfig, files: list[dict[str, bytes]], objects: Mapping[str, Any]
    ) -> None:
        """Run the session; cancelled, it ends as on Ctrl-C.

        Raises:
            whatever the session raises, the first cause of a group.
        """
        # Ray warns of each thread that waits; the trainer's does, the loop does not.
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
        printed = self._printed = Printed()
        self._has_begun.set()
        with contextlib.ExitStack() as stack:
            stack.callback(printed.end)
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(printed))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="areal_x-files-")))
            config = unpack_files(config, files, folder)
            # Connecting to the cluster is done; what is left of it blocks for moments only.
            config, placement = stack.enter_context(placed(command, config))  # type: ignore[arg-type]
            try:
                await SESSIONS[command](config, Given(**objects, placement=placement))
            except BaseExceptionGroup as group:
                raise first_cause(group) from None

    async def fetch(self) -> tuple[str, bool]:
        """See ``Printed.fetch``."""
        await self._has_begun.wait()
        assert self._printed is not None
        return await self._printed.fetch()


def run_on_cluster(command: str, config: ExperimentConfig, objects: Mapping[str, Any]) -> int:
    """Run a command in an actor of the configured cluster, and print here what it prints. Returns the exit status.

    Raises:
        ConfigError: the cluster is not as asked; nothing has started then.
        ArealXError: what the session raised; ``EngineDiedError`` when its actor ended.
    """
    packed, files = pack_files(config)
    num_ranks = 0 if command == "eval" else config.train.num_ranks
    with RayCluster(config, num_ranks), _sent_by_value(), _interruptible():
        actor: Any = ray.remote(DriverActor).options(num_cpus=1).remote()
        ending = actor.run.remote(command, packed, files, dict(objects))
        try:
            _print_until_its_end(actor, ending)
            ray.get(ending)
        except KeyboardInterrupt:
            return _stop(actor, ending)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            said = " ".join(str(error).split())[-300:]
            raise EngineDiedError(f"the actor in which the run's loop ran has ended: {said}") from error
        return 0


def _print_until_its_end(actor: Any, ending: Any) -> None:
    is_over = False
    while not is_over:
        fetching = actor.fetch.remote()
        if ending in ray.wait([fetching, ending], num_returns=1)[0]:
            # It ended, perhaps before it began: then there is nothing to fetch, which its error explains.
            ray.wait([fetching], timeout=_LAST_SECONDS)
            is_over = True
        if fetching in ray.wait([fetching], timeout=0.0)[0]:
            text, is_over = ray.get(fetching)
            sys.stdout.write(text)
            sys.stdout.flush()


def _stop(actor: Any, ending: Any) -> int:
    """Have the session end as on Ctrl-C: its files are written and closed."""
    with contextlib.suppress(RayError):
        ray.cancel(ending)
        ray.wait([ending], timeout=_STOP_SECONDS)
        text, _ = ray.get(actor.fetch.remote(), timeout=1.0)
        sys.stdout.write(text)
    print("areal-x: interrupted; everything reported so far is in the run's directory", file=sys.stderr)
    return INTERRUPTED


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _sent_by_value() -> Iterator[None]:
    """What the user's own modules define travels whole, since nodes cannot import it; packages are installed there."""
    modules = [module for module in list(sys.modules.values()) if _is_own(module)]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _is_own(module: ModuleType) -> bool:
    """Whether a module is a plain file that is imported from a folder of the user's."""
    file = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "__main__")
    if not file or not file.endswith(".py") or name in ("__main__", "__mp_main__") or name not in sys.modules:
        return False
    if Path(file).name == "__init__.py":  # A package, with all that is below it, is installed.
        return False
    folder = Path(file).resolve().parent
    main = getattr(sys.modules["__main__"], "__file__", None)
    own_folders = [Path.cwd(), *([Path(main).resolve().parent] if main else [])]
    return "." not in name and folder in own_folders and "site-packages" not in folder.parts
