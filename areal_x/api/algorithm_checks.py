"""Checks of the algorithm and of the models beside the policy: names, ranges, and what goes together."""

from __future__ import annotations

import dataclasses

from areal_x.api.algorithm_config import (
    ADVANTAGES,
    AGGREGATIONS,
    BASELINES,
    CORRECTIONS,
    KL_ESTIMATORS,
    POLICY_LOSSES,
    SCALES,
    CriticConfig,
    ReferenceConfig,
)
from areal_x.api.check_values import above_zero, at_least, bad_value, one_of, within
from areal_x.api.config import ExperimentConfig
from areal_x.api.import_paths import is_import_path
from areal_x.api.setting_checks import check_reference

__all__ = ["check_algorithm"]

_NEED_A_GROUP = {"group": "scale_by", "reinforce_pp_baseline": "advantage", "raft": "advantage"}
"""What compares the samples of a group, and the field that says so."""


def check_algorithm(config: ExperimentConfig) -> None:
    """Refuse an algorithm that is not known or cannot learn, and settings that it has no use for.

    Raises:
        ConfigError: names ``algorithm....``, ``reference....`` or ``critic....``, its value and what would be valid.
    """
    algorithm = config.algorithm
    functions = {"advantage": ADVANTAGES, "policy_loss": POLICY_LOSSES, "correction": CORRECTIONS}
    for name, built_in in functions.items():
        value = getattr(algorithm, name)
        if is_import_path(value):
            check_reference(f"algorithm.{name}", value)
        else:
            one_of(f"algorithm.{name}", value, built_in)
    words = {"baseline": BASELINES, "scale_by": SCALES, "aggregation": AGGREGATIONS, "kl_estimator": KL_ESTIMATORS}
    for name, choices in (words | {"kl_in": ("loss", "reward")}).items():
        one_of(f"algorithm.{name}", getattr(algorithm, name), choices)
    if algorithm.correction == "none" and algorithm.correction_kwargs:
        fix = "correction=none takes none; leave it out, or name a correction"
        raise bad_value("algorithm.correction_kwargs", algorithm.correction_kwargs, fix)
    _check_ranges(config)
    _check_group_size(config)
    _check_reference_model(config)
    _check_critic(config)


def _check_ranges(config: ExperimentConfig) -> None:
    algorithm = config.algorithm
    within("algorithm.clip_low", algorithm.clip_low, 0, 1)
    for name in ("clip_high", "kl_coefficient", "entropy_coefficient"):
        at_least(f"algorithm.{name}", getattr(algorithm, name), 0)
    if algorithm.dual_clip is not None and not algorithm.dual_clip > 1:
        fix = "bounds a loss at so many times the advantage; must be above 1, such as 3"
        raise bad_value("algorithm.dual_clip", algorithm.dual_clip, fix)
    if algorithm.dual_clip is not None and algorithm.policy_loss in POLICY_LOSSES and algorithm.policy_loss != "clip":
        fix = f"is used by algorithm.policy_loss=clip, and it is {algorithm.policy_loss}; leave it out"
        raise bad_value("algorithm.dual_clip", algorithm.dual_clip, fix)
    for name in ("discount", "gae_lambda"):
        within(f"algorithm.{name}", getattr(algorithm, name), 0, 1)
    for name in ("num_mini_batches", "num_epochs", "loss_length"):
        at_least(f"algorithm.{name}", getattr(algorithm, name), 1)
    if algorithm.loss_length is not None and algorithm.aggregation != "constant":
        fix = f"is used by algorithm.aggregation=constant, and it is {algorithm.aggregation}; leave it out"
        raise bad_value("algorithm.loss_length", algorithm.loss_length, fix)
    if algorithm.num_mini_batches > config.groups_per_step:
        fix = f"a step has only {config.groups_per_step} groups (train.batch_size / rollout.group_size)"
        raise bad_value("algorithm.num_mini_batches", algorithm.num_mini_batches, fix)


def _check_group_size(config: ExperimentConfig) -> None:
    """A sample that is alone in its group has nothing to be compared with."""
    algorithm = config.algorithm
    if config.rollout.group_size != 1 or algorithm.advantage not in _NEED_A_GROUP:
        return
    if algorithm.advantage == "raft" and algorithm.advantage_kwargs.get("threshold") is not None:
        return
    if algorithm.advantage == "group":
        if algorithm.baseline in ("group_mean", "leave_one_out"):
            fix = "a group of one has no baseline: its advantage is always 0; use 2 or more samples"
            raise bad_value("rollout.group_size", 1, fix)
        if algorithm.scale_by != "group_std":
            return
    name = _NEED_A_GROUP[algorithm.advantage]
    what = f"algorithm.{name}={getattr(algorithm, name)}"
    raise bad_value("rollout.group_size", 1, f"{what} compares samples of one prompt; use 2 or more")


def _check_reference_model(config: ExperimentConfig) -> None:
    reference = config.reference
    if not config.uses_reference:
        where = "algorithm.kl_coefficient, which is 0; set it above 0 (algorithm=reinforce_pp does)"
        _refuse_unused("reference", reference, ReferenceConfig(), where)
        return
    at_least("reference.update_every_steps", reference.update_every_steps, 1)
    if config.train.lora.rank and config.starts_warm and reference.path is None:
        fix = (
            "the reference would be the base below the adapters, which has not learnt the warm start; use 0, or run "
            "areal-x sft first and set model.path to what it writes"
        )
        raise bad_value("train.lora.rank", config.train.lora.rank, fix)
    decay = reference.ema_decay
    if decay is None:
        if reference.update_every_steps != 1:
            fix = "nothing moves the reference; set reference.ema_decay, too (0 copies the policy)"
            raise bad_value("reference.update_every_steps", reference.update_every_steps, fix)
        return
    if not 0 <= decay < 1:
        fix = "must be from 0 to below 1; leave it out for a reference that never moves"
        raise bad_value("reference.ema_decay", decay, fix)
    if config.train.lora.rank:
        fix = "a whole model cannot follow a base with adapters; leave it out, or use train.lora.rank=0"
        raise bad_value("reference.ema_decay", decay, fix)


def _check_critic(config: ExperimentConfig) -> None:
    critic = config.critic
    if not config.uses_critic:
        where = "algorithm.advantage=gae (algorithm=ppo), or an advantage function of your own and critic.enabled=true"
        _refuse_unused("critic", critic, CriticConfig(), where)
        return
    if critic.enabled and (advantage := config.algorithm.advantage) != "gae" and advantage in ADVANTAGES:
        fix = f"algorithm.advantage={advantage} looks at no values; leave it out, or use gae or a function of your own"
        raise bad_value("critic.enabled", "true", fix)
    at_least("critic.learning_rate", critic.learning_rate, 0)
    one_of("critic.lr_schedule", critic.lr_schedule, ("constant", "cosine", "linear"))
    at_least("critic.warmup_steps", critic.warmup_steps, 0)
    at_least("critic.policy_starts_after", critic.policy_starts_after, 0)
    above_zero("critic.clip", critic.clip)
    if critic.policy_starts_after >= config.train.total_steps > 0:
        fix = f"the policy would never be trained in train.total_steps={config.train.total_steps}"
        raise bad_value("critic.policy_starts_after", critic.policy_starts_after, fix)


def _refuse_unused(
    section: str, given: ReferenceConfig | CriticConfig, default: ReferenceConfig | CriticConfig, where: str
) -> None:
    """A setting of a model that the run does not have."""
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if value != getattr(default, field.name):
            raise bad_value(f"{section}.{field.name}", value, f"is used by {where}")
