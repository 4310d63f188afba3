"""The rewards of a configuration file, each as ``check_reward_function`` takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from areal_x.api.config import RewardConfig, RewardPartConfig
from areal_x.api.errors import ConfigError
from areal_x.launch.compose import ConfigSource, compose_config
from areal_x.reward.configured import reward_function
from areal_x.rollout.dataset import dataset_name

__all__ = ["ConfiguredReward", "configured_rewards"]


@dataclass(frozen=True, slots=True)
class ConfiguredReward:
    """One reward of a run: its name in ``reward.rewards`` (empty for a single one), its data and its options."""

    name: str
    title: str
    function: Callable[..., Any]
    data: str
    options: dict[str, Any]
    """Fields of ``CheckOptions``, as the run would have them."""


def configured_rewards(path: str, overrides: Sequence[str], data: str | None) -> list[ConfiguredReward]:
    """The reward of the configuration, or each of ``reward.rewards``.

    Args:
        path: a user's own configuration file.
        overrides: ``key=value``, as of ``areal-x train``.
        data: a file in place of ``data.path``.

    Raises:
        ConfigError: the configuration is wrong, or one of its rewards cannot be made.
    """
    given = [*overrides, *([] if data is None else [f"data.path={data}"])]
    config = compose_config(ConfigSource.file(path), given)
    dataset = dataset_name(config.data)
    parts: dict[str, RewardConfig | RewardPartConfig] = dict(config.reward.rewards) or {"": config.reward}
    found = []
    for name, part in parts.items():
        options = {
            "prompt_key": config.data.prompt_key,
            "dataset": dataset,
            "timeout_seconds": part.timeout_seconds or config.reward.timeout_seconds,
            "workers": config.reward.num_workers,
            "reward_key": part.reward_key,
            "group": part.group,
        }
        title = part.fn or (f"the reward of {dataset}" if name in ("", "accuracy") else name)
        function = _made(f"reward.rewards.{name}" if name else "reward", name, part, dataset)
        found.append(ConfiguredReward(name, f"{name}: {title}" if name else title, function, config.data.path, options))
    return found


def _made(key: str, name: str, part: RewardConfig | RewardPartConfig, dataset: str | None) -> Callable[..., Any]:
    try:
        return reward_function(name, part, dataset)
    except ConfigError as error:
        raise (error if f"{key}." in str(error) else ConfigError(f"{key}: {error}")) from error.__cause__
    except (TypeError, ValueError, KeyError) as error:
        # What the constructor of a class says of its options. Their values are not shown: one may be a key.
        names = ", ".join(part.kwargs) or "(none)"
        text = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key} cannot be made with options {names}: {text}") from error
