"""Servers that the tests start by hand, as a user does who runs them beside the library."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from running_engines import NUM_SLOTS
from server_models import MAX_LENGTH
from server_processes import family

from areal_x.engine.servers.environments import find_server_python
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.machine_checks import free_ports
from areal_x.engine.servers.sglang_command import sglang_command
from areal_x.engine.servers.vllm_command import vllm_command

__all__ = ["KEY", "KEY_VARIABLE", "ServerByHand", "server_by_hand"]

KEY_VARIABLE = "AREAL_X_TEST_SERVER_KEY"
KEY = "a-key-that-must-not-be-shown"
_COMMANDS = {"vllm": vllm_command, "sglang": sglang_command}
_START_SECONDS = 600.0


@dataclass(frozen=True)
class ServerByHand:
    """A server that runs."""

    kind: str
    url: str
    process: psutil.Process
    log_path: Path


@contextmanager
def server_by_hand(kind: str, model_path: Path, folder: Path, max_length: int = MAX_LENGTH) -> Iterator[ServerByHand]:
    """A server of ``model_path`` on loopback with ``KEY``, until the block is left."""
    (port,) = free_ports("127.0.0.1", 1)
    command = _COMMANDS[kind](
        LaunchSettings(
            python=find_server_python(kind, None),
            model_path=str(model_path),
            host="127.0.0.1",
            port=port,
            dtype="float32",
            max_length=max_length,
            num_slots=NUM_SLOTS,
            stream_interval=16,
            api_key=KEY,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / f"{kind}_by_hand.log"
    with log_path.open("wb") as log:
        started = subprocess.Popen(command.argv, env=os.environ | command.env, stdout=log, stderr=log)
    process = psutil.Process(started.pid)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, started, log_path)
        yield ServerByHand(kind, url, process, log_path)
    finally:
        for one in reversed(family(process)) if started.poll() is None else ():
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
        started.wait(60)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    asked = urllib.request.Request(f"{url}/health", headers={"Authorization": f"Bearer {KEY}"})
    while True:
        try:
            urllib.request.urlopen(asked, timeout=30).close()
            return
        except (OSError, urllib.error.HTTPError):
            tail = log_path.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"the server ended:\n{tail}"
            assert time.monotonic() < deadline, f"the server does not answer:\n{tail}"
            time.sleep(0.2)
