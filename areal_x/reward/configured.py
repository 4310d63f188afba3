"""The reward function that a section of the configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from areal_x.api.config import RewardConfig, RewardPartConfig
from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import split_library
from areal_x.reward.registry import get_reward_fn

__all__ = ["reward_function"]


def reward_function(name: str, reward: RewardConfig | RewardPartConfig, dataset: str | None) -> Callable[..., Any]:
    """The function of a single reward (``name`` empty), or of one of several.

    Args:
        name: its key in ``reward.rewards``; without ``fn`` it names a built-in reward, ``accuracy`` the one of
            ``dataset``.

    Raises:
        ConfigError: an unknown name, or an option that the reward does not take.
    """
    fn = reward.fn if reward.fn is not None or name in ("", "accuracy") else name
    # The adapters of other libraries have to know themselves whether they are called with whole groups.
    is_adapted = fn is not None and split_library(fn)[0] is not None
    group = {"group": reward.group} if is_adapted and reward.group is not None else {}
    try:
        return get_reward_fn(fn, dataset=dataset, **(group | reward.kwargs))
    except ConfigError as error:
        if not name:
            raise
        text = str(error)
        for key in ("fn", "kwargs"):
            text = text.replace(f"reward.{key}", f"reward.rewards.{name}.{key}")
        raise ConfigError(text) from error
