"""The critic of a run whose models are divided among ranks: each call goes to all of them, as of the policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from areal_x.api.config import AlgorithmConfig, CriticConfig, ModelConfig, TrainConfig
from areal_x.api.records import FloatArray, TrainBatch
from areal_x.engine.ranks.rank_group import RankGroup, device_of_rank

__all__ = ["CRITIC", "RankedCritic"]

CRITIC = "critic"
"""Role of the critic on every rank."""
_FACTORY = "areal_x.engine.critic.critic_engine:make_critic_engine"


class RankedCritic:
    """A ``CriticEngine`` on each rank of ``group``, which whoever made the group closes. Arguments as of that.

    Every method raises ``EngineDiedError`` when a rank ended or did not answer; all ranks are stopped then.

    Raises:
        ConfigError: the model cannot be loaded or trained packed.
    """

    def __init__(
        self,
        group: RankGroup,
        model_path: Path | str,
        critic: CriticConfig,
        train: TrainConfig,
        algorithm: AlgorithmConfig,
        model: ModelConfig,
        *,
        seed: int = 0,
    ) -> None:
        self.group = group
        arguments = {
            "model_path": model_path,
            "critic": critic,
            "train": train,
            "algorithm": algorithm,
            "model": dataclasses.replace(model, device=device_of_rank(model.device)),
            "seed": seed,
        }
        group.build(CRITIC, _FACTORY, arguments)

    def get_num_parameters(self) -> int:
        """See ``CriticEngine.get_num_parameters``."""
        number: int = self.group.call(CRITIC, "get_num_parameters")[0]
        return number

    def load_body(self, path: Path) -> None:
        """See ``CriticEngine.load_body``; ranks of other machines must see ``path``, too."""
        self.group.call(CRITIC, "load_body", path)

    def values(self, batch: TrainBatch) -> FloatArray:
        """See ``Critic.values``."""
        values: FloatArray = self.group.call(CRITIC, "values", batch)[0]
        return values

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """See ``Critic.train_step``."""
        metrics: dict[str, float] = self.group.call(CRITIC, "train_step", batch)[0]
        return metrics

    def begin_checkpoint(self, path: Path) -> None:
        """See ``TrainEngine.begin_checkpoint``; ranks of other machines must see ``path``, too."""
        self.group.call(CRITIC, "begin_checkpoint", path)

    def end_checkpoint(self) -> None:
        """See ``TrainEngine.end_checkpoint``."""
        self.group.call(CRITIC, "end_checkpoint")

    def restore_checkpoint(self, path: Path) -> None:
        """See ``TrainEngine.restore_checkpoint``; ranks of other machines must see ``path``, too."""
        self.group.call(CRITIC, "restore_checkpoint", path)
