"""Checks of the filters of groups: known by name, with bounds that some group can meet."""

from __future__ import annotations

import math
from typing import Any

from areal_x.api.check_values import at_least, bad_value, one_of
from areal_x.api.config import ExperimentConfig
from areal_x.api.import_paths import is_import_path
from areal_x.api.reward_records import DEFAULT_REWARD_KEY
from areal_x.api.setting_checks import check_reference

__all__ = ["FILTERS", "check_filters"]

FILTERS = ("nonzero_variance", "reward_range")
"""Built-in filters."""


def check_filters(config: ExperimentConfig) -> None:
    """Refuse filters that are not known or reject everything.

    Raises:
        ConfigError: names ``rollout.filter...`` or ``rollout.max_redraws``, its value and what would be valid.
    """
    rollout = config.rollout
    at_least("rollout.max_redraws", rollout.max_redraws, 0)
    for key, name in (("rollout.filter", rollout.filter), ("rollout.early_filter", rollout.early_filter)):
        if name is None:
            continue
        if is_import_path(name):
            check_reference(key, name)
        else:
            one_of(key, name, FILTERS)
        if name == "nonzero_variance" and rollout.group_size == 1:
            fix = "rejects everything: a sample alone in its group never differs; use rollout.group_size above 1"
            raise bad_value(key, name, fix)
    if rollout.early_filter == "reward_range":
        fix = "needs bounds, and rollout.filter_kwargs are of rollout.filter; use a function of your own (file.py:NAME)"
        raise bad_value("rollout.early_filter", rollout.early_filter, fix)
    if rollout.filter_kwargs and rollout.filter is None:
        raise bad_value("rollout.filter_kwargs", rollout.filter_kwargs, "there is no filter; set rollout.filter")
    if rollout.filter in FILTERS:
        _check_key(config)
    if rollout.filter == "reward_range":
        _check_range(config)


def _check_key(config: ExperimentConfig) -> None:
    """Where all parts of the reward are named in the configuration, the one that is looked at is among them."""
    key, rewards = config.rollout.filter_kwargs.get("key"), config.reward.rewards
    if key is None or not rewards:
        return
    one_of("rollout.filter_kwargs.key", str(key), (DEFAULT_REWARD_KEY, *rewards, *config.used_reward_models))


def _check_range(config: ExperimentConfig) -> None:
    kwargs, clip = config.rollout.filter_kwargs, config.reward.clip
    bounds = {name: _number(name, kwargs[name]) for name in ("low", "high") if kwargs.get(name) is not None}
    if not bounds:
        fix = "keeps everything without bounds; set rollout.filter_kwargs.low or high"
        raise bad_value("rollout.filter", config.rollout.filter, fix)
    low, high = bounds.get("low", -math.inf), bounds.get("high", math.inf)
    if low > high or (low == high and not kwargs.get("inclusive")):
        fix = f"rejects everything: it must be below high={high:g}"
        raise bad_value("rollout.filter_kwargs.low", f"{low:g}", fix)
    if clip is None or kwargs.get("key") is not None:
        return
    for name, bound, is_outside in (("low", low, low >= clip[1]), ("high", high, high <= clip[0])):
        if is_outside and not (kwargs.get("inclusive") and bound in clip):
            fix = f"rejects everything: rewards are within reward.clip={clip}"
            raise bad_value(f"rollout.filter_kwargs.{name}", f"{bound:g}", fix)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise bad_value(f"rollout.filter_kwargs.{name}", value, "must be a finite number")
    return float(value)
