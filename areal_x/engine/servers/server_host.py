"""Where a server's process is started: on this machine, or on another by whoever implements ``ServerHost``."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.machine_checks import free_ports
from areal_x.engine.servers.server_process import ServerProcess
from areal_x.engine.servers.sglang_command import sglang_command
from areal_x.engine.servers.vllm_command import vllm_command

__all__ = ["HostedProcess", "LocalHost", "ServerHost"]

_COMMANDS = {"vllm": vllm_command, "sglang": sglang_command}
_WRITES_MODEL = threading.Lock()
"""Servers that start at once need the same quantized copy of the model."""


class HostedProcess(Protocol):
    """A server's process, wherever it runs. See ``ServerProcess``, which is one."""

    @property
    def pid(self) -> int:
        """Of the server, on its machine."""
        ...

    async def wait(self) -> int:
        """Wait until it has ended; its exit status, or minus the signal that ended it."""
        ...

    def tail(self) -> str:
        """The last lines that it printed."""
        ...

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """End it with all its descendants; safe when it has ended.

        Raises:
            EngineError: it could not be ended.
        """
        ...


class ServerHost(Protocol):
    """A place where servers are started."""

    @property
    def gpus(self) -> tuple[int, ...] | None:
        """GPUs of each server here, empty: it computes on the CPU. ``None``: those that the configuration names."""
        ...

    async def start(self, kind: str, settings: LaunchSettings, log_path: Path) -> tuple[str, HostedProcess]:
        """Start one server; its address as this process reaches it, and its process.

        Args:
            kind: ``vllm`` or ``sglang``.
            settings: what it is started with; ``port`` 0 takes a free one.
            log_path: what it prints is added there, or to a file of its own on another machine.

        Raises:
            EngineError: it could not be started.
        """
        ...


class LocalHost:
    """This machine. One is shared by the servers of an engine: it takes seconds until a server has its port."""

    gpus: tuple[int, ...] | None = None

    def __init__(self) -> None:
        self._given: set[int] = set()

    async def start(self, kind: str, settings: LaunchSettings, log_path: Path) -> tuple[str, ServerProcess]:
        """See ``ServerHost``."""
        settings = await asyncio.to_thread(_with_quantized_model, settings, log_path.parent)
        port = settings.port or self._free_port(settings.host)
        command = _COMMANDS[kind](replace(settings, port=port))
        env = {**os.environ, **command.env}
        process = await asyncio.to_thread(ServerProcess, command.argv, env, log_path)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        return f"http://{host}:{port}", process

    def _free_port(self, host: str) -> int:
        # As many as have been given, and one more: at least one of them is new.
        free = free_ports(host, len(self._given) + 1)
        port = next(port for port in free if port not in self._given)
        self._given.add(port)
        return port


def _with_quantized_model(settings: LaunchSettings, log_dir: Path) -> LaunchSettings:
    """Servers of eight bits start from a copy in eight bits, one for all: its weights are served until the first
    update."""
    if settings.quantization is None:
        return settings
    import torch

    from areal_x.engine.transfer.quantized_checkpoint import write_quantized_checkpoint

    target = log_dir / f"{settings.quantization}.model"
    with _WRITES_MODEL:
        if not target.exists():
            log_dir.mkdir(parents=True, exist_ok=True)
            dtype = getattr(torch, settings.dtype)
            write_quantized_checkpoint(settings.model_path, target, settings.quantization, dtype)
    return replace(settings, model_path=str(target))
