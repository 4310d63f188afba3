from __future__ import annotations

import asyncio
import os
import uuid

import pytest
from pool_checks import LOOPS, marked_processes, wait_until

from areal_x.process_pool import ProcessPool


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
                await asyncio.wait_for(test(pool), 300)
            # Garbage of earlier tests may give descriptors back meanwhile.
            assert len(os.listdir("/proc/self/fd")) <= before
            assert wait_until(lambda: marked_processes(marker) == [], 20.0)

        LOOPS[request.param](main())

    return run


@pytest.fixture
def marker(monkeypatch):
    value = uuid.uuid4().hex
    monkeypatch.setenv("AREAL_X_TEST_MARKER", value)
    return value
