"""The real processes of servers: which they are, what they compute in, and whether they are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import psutil

__all__ = ["engine_process", "family", "is_running", "servers_of", "until"]

_ENGINE_NAMES = ("VLLM::EngineCore", "sglang::scheduler")


def servers_of(model_path: Path) -> list[psutil.Process]:
    """The servers of a model that this process or its children have started, in the order of their start."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            names = str(model_path) in process.cmdline()
            inner = any(str(model_path) in child.cmdline() for child in process.children())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if names and not inner:
            found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants."""
    return [process, *process.children(recursive=True)]


def engine_process(server: psutil.Process) -> psutil.Process:
    """The process of a server that computes; another one answers HTTP."""
    (found,) = (child for child in server.children(recursive=True) if _title(child).startswith(_ENGINE_NAMES))
    return found


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline()) or process.name()


def is_running(process: psutil.Process) -> bool:
    """Whether it is there and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for a condition of the outside world; returns how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - started
