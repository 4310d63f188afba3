"""The models beside the policy: what is checked of them before anything is loaded, and how a critic comes to be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.api.model_checks import check_model_files
from areal_x.api.reward_model_checks import local_folder
from areal_x.api.reward_model_files import read_reward_model_files
from areal_x.engine.critic.critic_engine import CRITIC_HEADS, CriticEngine
from areal_x.engine.critic.ranked_critic import RankedCritic
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.engine.train.packed_scores import check_score_model
from areal_x.trainer.roles import PolicyEngine

__all__ = ["CriticModel", "check_critic_files", "check_made_model", "give_warm_start", "make_critic"]

CriticModel = CriticEngine | RankedCritic
"""A critic here or on ranks."""
_WARM_START = "warm_start"
"""Folder of a run with the policy as its warm start left it, for the critic to begin with."""


def check_critic_files(config: ExperimentConfig) -> None:
    """Check what ``critic.path`` holds, without loading weights.

    Raises:
        ConfigError: it is missing, or has another head than it needs.
    """
    path = config.critic.path
    if not config.uses_critic or path is None:
        return
    try:
        known = check_score_model(path, trust_remote_code=config.model.trust_remote_code, heads=CRITIC_HEADS)
    except ConfigError as error:
        raise ConfigError(f"critic.path={path} cannot be the critic: {error}") from error
    folder = local_folder(path)
    if folder is not None and str((known.architectures or [""])[0]).endswith("Classification"):
        read_reward_model_files("critic.path", folder)


def check_made_model(config: ExperimentConfig, model_path: str) -> None:
    """Compare a policy that was made just now (``model.init``) with critic and reference, as others were before.

    Raises:
        ConfigError: one has another vocabulary than the policy.
    """
    if config.model.path is None:
        check_model_files(dataclasses.replace(config, model=dataclasses.replace(config.model, path=model_path)))


def make_critic(config: ExperimentConfig, model_path: str, ranks: RankGroup | None = None) -> CriticModel | None:
    """The critic, in this process or on ``ranks``; ``None`` where advantages need none."""
    if not config.uses_critic:
        return None
    arguments = (model_path, config.critic, config.train, config.algorithm, config.model)
    if ranks is None:
        return CriticEngine(*arguments, seed=config.seed)
    return RankedCritic(ranks, *arguments, seed=config.seed)


def give_warm_start(
    config: ExperimentConfig, train_engine: PolicyEngine, critic: CriticModel | None, run_dir: Path
) -> None:
    """A critic that has no model of its own begins with the body of the policy as its warm start has left it."""
    if critic is None or config.critic.path is not None:
        return
    train_engine.save(run_dir / _WARM_START)
    critic.load_body(run_dir / _WARM_START)
