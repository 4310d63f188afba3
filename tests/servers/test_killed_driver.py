"""Servers do not outlive the process that started them, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import mark_kind
from running_engines import SERVERS
from server_processes import is_running

SCRIPT = Path(__file__).with_name("driver_that_dies.py")
MOST_SECONDS = 60.0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [mark_kind(kind) for kind in SERVERS])
def test_servers_of_a_killed_driver_are_gone(kind: str, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, str(SCRIPT), kind, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert driver.stdout is not None
    try:
        line = driver.stdout.readline()
        assert line, "the driver ended before its servers ran"
        pids, folders = json.loads(line)
        processes = [psutil.Process(pid) for pid in pids]
        assert len(processes) >= 3 and all(map(is_running, processes))
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    killed = time.monotonic()
    while left := [one for one in processes if is_running(one)] + [path for path in folders if Path(path).exists()]:
        assert time.monotonic() - killed < MOST_SECONDS, f"left behind: {left}"
        time.sleep(0.02)
