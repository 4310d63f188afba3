"""Checks of the reward models in the training loop, from the configuration and the first bytes of their files."""

from __future__ import annotations

import math
from pathlib import Path

from areal_x.api.check_values import above_zero, at_least, bad_value, one_of
from areal_x.api.config import ExperimentConfig, RewardModelConfig
from areal_x.api.errors import ConfigError
from areal_x.api.reward_model_files import read_reward_model_files
from areal_x.api.reward_records import DEFAULT_REWARD_KEY

__all__ = ["NO_RULE_REWARD", "RESERVED_NAMES", "RULE_PART", "check_reward_models", "local_folder", "reward_model_key"]

RESERVED_NAMES = (DEFAULT_REWARD_KEY, "mean", "std", "processed_mean")
"""What no reward of several may be called: metrics of the whole have these names."""
RULE_PART = "rule"
"""The part that holds what the rule rewards gave, beside the scores of reward models."""
NO_RULE_REWARD = "none"
"""``reward.fn`` of a run in which reward models alone give the reward."""
_DTYPES = ("auto", "bfloat16", "float16", "float32")
_AGGREGATIONS = ("last", "mean", "min", "sum")


def reward_model_key(config: ExperimentConfig, name: str) -> str:
    """Where a reward model stands in the configuration."""
    return f"reward_models.{name}" if config.reward_models else "reward_model"


def local_folder(path: str) -> Path | None:
    """The folder that ``path`` names, there or not; ``None`` for a name on the hub (``organisation/name``)."""
    folder = Path(path).expanduser()
    is_hub_name = (
        path.count("/") == 1
        and not path.startswith((".", "/", "~"))
        and path.split("/")[0]
        not in (
            "models",
            "runs",
        )
    )
    return None if is_hub_name and not folder.exists() else folder


def check_reward_models(config: ExperimentConfig) -> None:
    """Refuse reward models that cannot be loaded, or not be used as the configuration says.

    Raises:
        ConfigError: one line with the key, the value and what would be valid.
    """
    if config.reward_models and config.reward_model != RewardModelConfig():
        raise ConfigError("reward_model and reward_models are both set; list all of them in reward_models")
    if not config.reward_models and config.reward_model.path is None and config.reward_model != RewardModelConfig():
        raise ConfigError("reward_model.path is not set, and other keys of reward_model are; name the reward model")
    models = config.used_reward_models
    for name, model in models.items():
        _check_name(config, name)
        _check_values(reward_model_key(config, name), model)
    if not models:
        if config.reward.fn == NO_RULE_REWARD:
            fix = "leaves no reward at all; set reward_model.path, or name a rule reward"
            raise bad_value("reward.fn", NO_RULE_REWARD, fix)
        if config.rollout.early_filter is not None:
            fix = "is asked before reward models, and there are none; use rollout.filter"
            raise bad_value("rollout.early_filter", config.rollout.early_filter, fix)
        return
    if not any(model.weight for model in models.values()) and config.reward.fn == NO_RULE_REWARD:
        raise ConfigError("the weight of every reward model is 0 and reward.fn=none: nothing could be learnt")


def _check_name(config: ExperimentConfig, name: str) -> None:
    key = reward_model_key(config, name)
    taken = (*RESERVED_NAMES, RULE_PART)
    if not name or "/" in name or name in taken:
        raise bad_value(key, name, f"a name must not be empty, hold a / or be one of {', '.join(taken)}")
    if name in config.reward.rewards:
        raise bad_value(key, name, "a rule reward of reward.rewards has this name, too; rename one of them")


def _check_values(key: str, model: RewardModelConfig) -> None:
    one_of(f"{key}.dtype", model.dtype, _DTYPES)
    one_of(f"{key}.aggregation", model.aggregation, _AGGREGATIONS)
    if not math.isfinite(model.weight):
        raise bad_value(f"{key}.weight", model.weight, "must be a finite number")
    for name in ("max_length", "micro_batch_tokens"):
        at_least(f"{key}.{name}", getattr(model, name), 1)
    above_zero(f"{key}.timeout_seconds", model.timeout_seconds)
    if model.step_separator == "":
        raise bad_value(f"{key}.step_separator", "''", "name the text that ends a step, such as '\\n\\n'")
    if model.aggregation != "last" and model.step_separator is None:
        raise bad_value(f"{key}.aggregation", model.aggregation, f"joins the scores of steps; set {key}.step_separator")
    if model.path is None:
        raise bad_value(f"{key}.path", model.path, "name a folder in Hugging Face format or a hub name")
    folder = local_folder(model.path)
    if folder is None:
        return
    files = read_reward_model_files(f"{key}.path", folder)
    if model.step_separator is not None and files.head != "token":
        fix = (
            f"needs a head that scores tokens, and {folder} is a sequence classification model: one score for the whole"
        )
        raise bad_value(f"{key}.step_separator", repr(model.step_separator), fix)
