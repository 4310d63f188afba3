"""A configuration that has passed every check which needs nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

from areal_x.api.config import ExperimentConfig
from areal_x.api.config_checks import check_config
from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import is_import_path
from areal_x.launch.compose import ConfigSource, compose_config, compose_tree, to_yaml
from areal_x.rollout.dataset import DATA_SETS, dataset_name, load_dataset_items

__all__ = ["checked_config", "dry_run"]


def checked_config(command: str, source: ConfigSource, overrides: Sequence[str]) -> ExperimentConfig:
    """Compose and check the configuration of ``train``, ``sft`` or ``eval``. Data that is made is made once to try.

    Raises:
        ConfigError: one line with the key, the value and what would be valid.
    """
    config = compose_config(source, overrides)
    if command == "sft":
        config.sft.enabled = True
    check_config(config)
    if config.data.path in DATA_SETS:
        load_dataset_items(config.data)
    if command != "sft":
        _check_reward_name(config)
    return config


def _check_reward_name(config: ExperimentConfig) -> None:
    """A built-in reward's name and options are known before anything starts; a user's own module is left to the run."""
    reward = config.reward
    if reward.fn is not None and is_import_path(reward.fn):
        return
    from areal_x.reward.registry import get_reward_fn

    name = dataset_name(config.data)
    try:
        get_reward_fn(reward.fn, dataset=name, **reward.kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward.kwargs={reward.kwargs}: {error}") from error


def dry_run(command: str, source: ConfigSource, overrides: Sequence[str]) -> None:
    """Print the resolved configuration as YAML, then check it.

    Raises:
        ConfigError: as ``checked_config``; what could be composed has been printed by then.
    """
    print(to_yaml(compose_tree(source, overrides)), end="", flush=True)
    checked_config(command, source, overrides)
