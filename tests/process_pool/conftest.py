from __future__ import annotations

import asyncio
import os
import time
import uuid

import pytest

from areal_x.process_pool import ProcessPool

LOOPS = {"asyncio": asyncio.run}
try:
    import uvloop

    LOOPS["uvloop"] = uvloop.run
except ImportError:
    pass


def marked_processes(marker):
    """Processes that inherited the marker from this one."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if f"AREAL_X_TEST_MARKER={marker}\0".encode() in file.read():
                    found.append(int(entry))
        except OSError:
            continue
    return found


@pytest.fixture(params=sorted(LOOPS))
def run_with_pool(request, monkeypatch):
    """Runs ``test(pool)`` on each kind of loop, and checks that no descriptor and no process is left."""

    def run(test, **options):
        marker = uuid.uuid4().hex
        monkeypatch.setenv("AREAL_X_TEST_MARKER", marker)
        options.setdefault("num_workers", 2)

        async def main():
            await asyncio.sleep(0)
            before = len(os.listdir("/proc/self/fd"))
            async with ProcessPool(**options) as pool:
                await asyncio.wait_for(test(pool), 50)
            assert len(os.listdir("/proc/self/fd")) == before
            assert marked_processes(marker) == []

        LOOPS[request.param](main())

    return run


@pytest.fixture
def marker(monkeypatch):
    value = uuid.uuid4().hex
    monkeypatch.setenv("AREAL_X_TEST_MARKER", value)
    return value


def wait_until(condition, seconds):
    """Whether ``condition()`` came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
