"""What the pool's tests look at from outside."""

from __future__ import annotations

import asyncio
import os
import time

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


async def settles(pool, marker, number):
    """Whether all workers of ``pool`` are up in time, and no more than ``number`` processes are there then."""
    end = time.monotonic() + 20.0
    while not all(worker.ready for worker in pool._workers.values()) or len(marked_processes(marker)) != number:
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


def wait_until(condition, seconds):
    """Whether ``condition()`` came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
