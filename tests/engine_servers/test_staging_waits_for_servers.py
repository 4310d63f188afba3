"""Staging and the servers that load what is staged take turns."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from areal_x.engine.transfer.make_transport import make_transport
from areal_x.engine.transfer.staging import LiveWeights
from areal_x.engine.weights import StagedSync


async def test_staging_waits_for_servers_that_load(tmp_path: Path) -> None:
    """A server that joins again reads the staged version and then its bytes: no other version may come between."""
    tensors = [("weight", torch.ones(3))]
    transport = make_transport(
        "disk", tensors, engine="vllm", dtype=None, directory=tmp_path / "weights", timeout_seconds=5.0
    )
    sync = StagedSync(LiveWeights(lambda: tensors), transport, [])
    await sync.stage(1)
    async with transport.lock:
        staging = asyncio.create_task(sync.stage(2))
        await asyncio.sleep(0.1)
        assert transport.version == 1 and not staging.done()
    await staging
    assert transport.version == 2
    transport.close()
