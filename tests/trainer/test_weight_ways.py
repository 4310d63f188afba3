"""Which way weights take in a run whose ranks and servers are on several machines."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from areal_x.api.config import ExperimentConfig, RolloutConfig, ServerConfig
from areal_x.api.engine_api import PolicyFacts
from areal_x.api.errors import ConfigError
from areal_x.engine.placement import LocalPlacement
from areal_x.engine.train.ranked_engine import RankedTrainEngine
from areal_x.trainer.engines import stage_weights


class Far(LocalPlacement):
    """Servers on other machines."""

    address = "127.0.0.2"  # type: ignore[assignment]


class Ranks(RankedTrainEngine):
    """What a run knows of a policy on ranks; there are none."""

    def __init__(self, device: str) -> None:
        self._facts = PolicyFacts(device, torch.float32, (("a", (4, 2)),), 4, False)


async def staged_way(tmp_path: Path, way: str, placement: LocalPlacement, device: str = "cpu") -> dict[str, Any]:
    config = ExperimentConfig(rollout=RolloutConfig("vllm", server=ServerConfig(weights=way)))
    async with AsyncExitStack() as stack:
        staging = stage_weights(config, Ranks(device), "", tmp_path, stack, placement)
        joins = staging.join_orders(1)  # type: ignore[union-attr]
        return {"way": staging.way, "join": joins and joins[0]["join"]["host"]}  # type: ignore[union-attr]


async def test_auto_takes_what_reaches_all_servers(tmp_path: Path) -> None:
    assert await staged_way(tmp_path, "auto", LocalPlacement()) == {"way": "shared_memory", "join": []}
    assert await staged_way(tmp_path, "auto", Far()) == {"way": "gloo", "join": "127.0.0.2"}
    assert await staged_way(tmp_path, "gloo", LocalPlacement()) == {"way": "gloo", "join": "127.0.0.1"}


async def test_ways_that_do_not_reach_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights=shared_memory: it reaches servers of this machine"):
        await staged_way(tmp_path, "shared_memory", Far())
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="weights=nccl: the run's own process sends the weights and sees no GPU"):
            await staged_way(tmp_path, "nccl", LocalPlacement(), "cuda:0")
        assert await staged_way(tmp_path, "auto", Far(), "cuda:0") == {"way": "gloo", "join": "127.0.0.2"}
