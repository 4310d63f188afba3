"""The train engine of a run whose policy is divided among ranks: each call goes to all of them.

Every rank gets the whole batch and takes its part of it by a function that all compute alike, so that nothing is said
between them before the work begins. Metrics are those of all ranks together, and the first one's are taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from areal_x.api.config import AlgorithmConfig, ModelConfig, ReferenceConfig, TrainConfig
from areal_x.api.engine_api import PolicyFacts, TrainEngine
from areal_x.api.records import FloatArray, TrainBatch
from areal_x.engine.ranks.rank_group import RankGroup, device_of_rank
from areal_x.engine.transfer.lora import AdapterFacts

__all__ = ["POLICY", "RankedTrainEngine"]

POLICY = "policy"
"""Role of the policy on every rank."""
_FACTORY = "areal_x.engine.train.rank_policy:make_policy"
_GATHER_BYTES = 64 * 2**20


class RankedTrainEngine(TrainEngine):
    """A policy on ``group``, which whoever made the group closes. Arguments as of ``FSDPEngine``.

    Every method raises ``EngineDiedError`` when a rank ended or did not answer; all ranks are stopped then.

    Raises:
        ConfigError: the model cannot be loaded or trained packed, or a value is impossible.
    """

    def __init__(
        self,
        group: RankGroup,
        model_path: Path | str,
        train: TrainConfig,
        algorithm: AlgorithmConfig,
        model: ModelConfig,
        *,
        temperature: float = 1.0,
        reference: ReferenceConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.version = 0
        self.group = group
        arguments = {
            "model_path": model_path,
            "train": train,
            "algorithm": algorithm,
            "model": dataclasses.replace(model, device=device_of_rank(model.device)),
            "temperature": temperature,
            "reference": reference,
            "seed": seed,
        }
        group.build(POLICY, _FACTORY, arguments)
        facts: PolicyFacts = group.call(POLICY, "get_facts")[0]
        # This process sees all GPUs: the first rank's has its number here.
        has_number = facts.device.startswith("cuda") and model.device.startswith("cuda:")
        self._facts = dataclasses.replace(facts, device=model.device) if has_number else facts

    @property
    def facts(self) -> PolicyFacts:
        """See ``TrainEngine.facts``."""
        return self._facts

    @property
    def adapter_facts(self) -> AdapterFacts:
        """See ``FSDPEngine.adapter_facts``."""
        facts: AdapterFacts = self.group.call(POLICY, "get_adapter_facts")[0]
        return facts

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """See ``TrainEngine.train_step``."""
        return self._metrics("train_step_at", self.version, batch)

    def accumulate(self, part: TrainBatch) -> None:
        """See ``TrainEngine.accumulate``."""
        self.group.call(POLICY, "accumulate_at", self.version, part)

    def apply(self) -> dict[str, float]:
        """See ``TrainEngine.apply``."""
        return self._metrics("apply")

    def discard(self) -> None:
        """See ``TrainEngine.discard``."""
        self.group.call(POLICY, "discard")

    def release_memory(self) -> None:
        """See ``TrainEngine.release_memory``."""
        self.group.call(POLICY, "release_memory")

    def sft_step(self, batch: TrainBatch) -> dict[str, float]:
        """See ``TrainEngine.sft_step``."""
        return self._metrics("sft_step", batch)

    def reset_optimizer(self, learning_rate: float, schedule: str, warmup_steps: int, total_steps: int) -> None:
        """See ``TrainEngine.reset_optimizer``."""
        self.group.call(POLICY, "reset_optimizer", learning_rate, schedule, warmup_steps, total_steps)

    def logprobs(self, batch: TrainBatch) -> FloatArray:
        """See ``TrainEngine.logprobs``."""
        values: FloatArray = self.group.call(POLICY, "first_ranks_logprobs", batch)[0]
        return values

    def reference_logprobs(self, batch: TrainBatch) -> FloatArray:
        """See ``TrainEngine.reference_logprobs``."""
        values: FloatArray = self.group.call(POLICY, "first_ranks_reference_logprobs", batch)[0]
        return values

    def update_reference(self) -> None:
        """See ``TrainEngine.update_reference``."""
        self.group.call(POLICY, "update_reference")

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See ``TrainEngine.named_weights``. Copies, which are gathered through the first rank a few at a time."""
        return self._gathered(adapters=False)

    def named_adapters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See ``FSDPEngine.named_adapters``. Copies, as of ``named_weights``."""
        return self._gathered(adapters=True)

    def save(self, path: Path) -> None:
        """See ``TrainEngine.save``; ranks of other machines must see ``path``, too."""
        self.group.call(POLICY, "save", path)

    def load(self, path: Path) -> None:
        """See ``TrainEngine.load``; ranks of other machines must see ``path``, too."""
        self.group.call(POLICY, "load", path)

    def begin_checkpoint(self, path: Path) -> None:
        """See ``TrainEngine.begin_checkpoint``; ranks of other machines must see ``path``, too."""
        self.group.call(POLICY, "begin_checkpoint_of", self.version, path)

    def end_checkpoint(self) -> None:
        """See ``TrainEngine.end_checkpoint``."""
        self.group.call(POLICY, "end_checkpoint")

    def restore_checkpoint(self, path: Path) -> None:
        """See ``TrainEngine.restore_checkpoint``; ranks of other machines must see ``path``, too."""
        self.version = self.group.call(POLICY, "restored_version", path)[0]

    def _metrics(self, method: str, *args: Any) -> dict[str, float]:
        metrics: dict[str, float] = self.group.call(POLICY, method, *args)[0]
        return metrics

    def _gathered(self, adapters: bool) -> Iterator[tuple[str, torch.Tensor]]:
        self.group.call(POLICY, "start_gathering", adapters)
        while named := self.group.call(POLICY, "gather", _GATHER_BYTES)[0]:
            for name, weight in named:
                yield name, torch.from_numpy(weight)
