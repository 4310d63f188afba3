"""Inference servers on the nodes of a Ray cluster: an actor there starts the server and watches it.

The server is a process of its own below a guardian, as everywhere (see ``server_process.py``), so it ends with the
actor whatever happens. An actor that dies is started again by Ray, ``max_restarts`` times; the engine's recovery then
has it start a new server, which takes part again once it has the current weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from areal_x.api.errors import EngineError
from areal_x.engine.ranks.rank_actor import read_tail
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.server_host import LocalHost
from areal_x.engine.servers.server_process import ServerProcess

__all__ = ["RayServerHost", "RayServerProcess", "ServerActor"]

_ACTOR_SECONDS = 60.0
"""An actor of a node that works is there in a few seconds, also after a restart."""
_TAIL_SECONDS = 1.0
_STOP_SECONDS = 20.0


class ServerActor:
    """Starts and ends one server on the node where Ray put this actor.

    Args:
        driver_node: the node of the driver: its servers are reached through loopback, all others at their node's
            address, which the run's key guards.
    """

    def __init__(self, driver_node: str) -> None:
        self._is_near = ray.get_runtime_context().get_node_id() == driver_node
        self._host = LocalHost()
        self._process: ServerProcess | None = None

    @ray.method(max_task_retries=-1)
    async def start(self, kind: str, settings: LaunchSettings, log_path: str) -> tuple[str, int, bool]:
        """Start a server, in place of an earlier one; its address, process id, and whether its log is where the driver
        reads it. Asked while Ray starts the actor again, it waits for that."""
        if self._process is not None:
            await self._process.stop(0.0)
        path = Path(log_path)
        if not self._is_near:
            settings = replace(settings, host=ray.util.get_node_ip_address())
            path = Path(tempfile.mkdtemp(prefix="areal_x-log-")) / path.name
        if settings.gpus:
            gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
            settings = replace(settings, gpus=tuple(map(int, gpus)))
        address, self._process = await self._host.start(kind, settings, path)
        return address, self._process.pid, self._is_near

    async def wait(self) -> tuple[int, str]:
        """Wait until the server has ended; its status and its last lines."""
        assert self._process is not None
        status = await self._process.wait()
        return status, self._process.tail()

    async def tail(self) -> str:
        """The last lines that the server printed."""
        return "" if self._process is None else self._process.tail()

    async def stop(self, grace_seconds: float) -> None:
        """See ``ServerProcess.stop``."""
        if self._process is not None:
            await self._process.stop(grace_seconds)


class RayServerHost:
    """A bundle of a placement group in which one server runs.

    Args:
        num_gpus: of the server; 0: it computes on the CPU.
        max_restarts: so many times Ray starts the actor again that died.
    """

    def __init__(
        self, group: PlacementGroup, index: int, *, num_gpus: int, driver_node: str, max_restarts: int
    ) -> None:
        self.gpus: tuple[int, ...] | None = tuple(range(num_gpus))
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        self._options = {
            "num_cpus": 1,
            "num_gpus": num_gpus,
            "max_restarts": max_restarts,
            "scheduling_strategy": strategy,
        }
        self._driver_node = driver_node
        self._actor: Any = None

    async def start(self, kind: str, settings: LaunchSettings, log_path: Path) -> tuple[str, RayServerProcess]:
        """See ``ServerHost``."""
        if self._actor is None:
            self._actor = ray.remote(ServerActor).options(**self._options).remote(self._driver_node)
        try:
            async with asyncio.timeout(_ACTOR_SECONDS):
                address, pid, is_near = await self._actor.start.remote(kind, settings, str(log_path.absolute()))
        except TimeoutError:
            raise EngineError(
                f"the Ray actor of a server did not answer within {_ACTOR_SECONDS:g} s; is its node still there?"
            ) from None
        except RayTaskError as error:
            raise EngineError(f"{type(error.cause).__name__}: {error.cause}") from error
        except RayActorError as error:
            raise EngineError(
                f"the Ray actor of a server is gone and not started again (cluster.max_restarts="
                f"{self._options['max_restarts']})"
            ) from error
        return address, RayServerProcess(self._actor, pid, str(log_path.absolute()) if is_near else None)

    def close(self) -> None:
        """End the actor, and its server with it."""
        if self._actor is not None:
            with contextlib.suppress(RayError, RuntimeError):
                ray.kill(self._actor)
            self._actor = None


class RayServerProcess:
    """A server's process on its node, through the actor that started it. See ``HostedProcess``.

    Args:
        log_path: its log, where this process can read it.
    """

    def __init__(self, actor: Any, pid: int, log_path: str | None) -> None:
        self.pid = pid
        self._log_path = log_path
        self._actor = actor
        self._end = actor.wait.remote()
        self._last = ""
        self._status: int | None = None

    async def wait(self) -> int:
        """See ``HostedProcess``. An actor that dies takes its server with it: as if killed."""
        if self._status is None:
            try:
                self._status, self._last = await self._end
            except RayError as error:
                ended = f"its Ray actor ended: {' '.join(str(error).split())[-300:]}"
                self._last = f"{self.tail()}\n{ended}".strip()
                self._status = -signal.SIGKILL
        return self._status

    def tail(self) -> str:
        """See ``HostedProcess``. Asked when a server is lost or slow, so seldom that it may wait a second."""
        if self._log_path is not None and self._status is None:
            return read_tail(self._log_path)
        if self._status is None:
            with contextlib.suppress(RayError):
                self._last = ray.get(self._actor.tail.remote(), timeout=_TAIL_SECONDS)
        return self._last

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """See ``HostedProcess``. With an actor that is gone the server is, too."""
        with contextlib.suppress(RayError):
            try:
                async with asyncio.timeout(grace_seconds + _STOP_SECONDS):
                    await self._actor.stop.remote(grace_seconds)
            except TimeoutError:
                raise EngineError(
                    f"server process {self.pid} did not end within {grace_seconds + _STOP_SECONDS:g} s: its Ray actor "
                    "does not answer"
                ) from None
