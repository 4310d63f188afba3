"""GPUs by their numbers: a rank sees one GPU alone, the run's own process sees all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from areal_x.api.config import AlgorithmConfig, ExperimentConfig, ModelConfig, RewardModelConfig, TrainConfig
from areal_x.api.engine_api import PolicyFacts
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.engine.train.ranked_engine import RankedTrainEngine
from areal_x.trainer.engines import check_reward_model_memory
from areal_x.trainer.reward_model_training import RankedPreferences
from areal_x.trainer.reward_models import LoopModel

ONE_GPU = PolicyFacts("cuda", torch.float32, (("weight", (4, 2)),), 4, False)


class Ranks(RankGroup):
    """Keeps what roles are made of."""

    num_ranks = 2  # type: ignore[assignment]
    same_host = True  # type: ignore[assignment]

    def __init__(self) -> None:
        self.built: dict[str, Mapping[str, Any]] = {}

    def build(self, role: str, factory: str, kwargs: Mapping[str, Any]) -> None:
        self.built[role] = kwargs

    def call(self, role: str, method: str, *args: Any, per_rank: Any = None) -> list[Any]:
        return [ONE_GPU] * 2

    def watch(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("device", ["cuda:2", "cuda", "cpu"])
def test_ranks_call_their_device_by_its_kind(device: str) -> None:
    ranks, model = Ranks(), ModelConfig(device=device)
    kind = device.partition(":")[0]
    RankedTrainEngine(ranks, "model", TrainConfig(), AlgorithmConfig(), model)
    assert ranks.built["policy"]["model"].device == kind
    RankedPreferences(ranks, {"model": model})
    assert ranks.built["preferences"]["model"].device == kind
    LoopModel("judge", "reward_model", RewardModelConfig(), None, None).load(device, ranks, False)  # type: ignore[arg-type]
    assert ranks.built["reward_model/judge"]["device"] == kind


@pytest.mark.parametrize(("device", "here"), [("cuda:2", "cuda:2"), ("cuda", "cuda"), ("auto", "cuda")])
def test_the_run_knows_the_first_ranks_gpu_by_its_own_number(device: str, here: str) -> None:
    """From there it sends weights, which must not be a GPU of the servers."""
    engine = RankedTrainEngine(Ranks(), "model", TrainConfig(), AlgorithmConfig(), ModelConfig(device=device))
    assert engine.facts.device == here


@pytest.mark.skipif(torch.cuda.is_available(), reason="a driver without a GPU")
def test_a_driver_without_a_gpu_leaves_the_memory_of_ranks_to_them() -> None:
    engine = RankedTrainEngine(Ranks(), "model", TrainConfig(), AlgorithmConfig(), ModelConfig(device="cuda"))
    model = LoopModel("judge", "reward_model", RewardModelConfig(), None, None)  # type: ignore[arg-type]
    check_reward_model_memory(ExperimentConfig(), engine, [model])
