"""A configuration that has passed every check which needs nothing heavy."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from areal_x.api.check_values import bad_value
from areal_x.api.config import ExperimentConfig, RewardConfig, RewardPartConfig
from areal_x.api.config_checks import check_config, check_reward_training
from areal_x.api.errors import ConfigError, MissingExtraError
from areal_x.api.evaluation_checks import filled_set
from areal_x.api.import_paths import is_import_path, load_object, split_library
from areal_x.api.reward_model_checks import NO_RULE_REWARD
from areal_x.api.server_checks import check_trains
from areal_x.engine.train.advantages import load_advantage
from areal_x.launch.compose import ConfigSource, compose_config, compose_tree, parse_override, to_yaml
from areal_x.launch.objective_functions import check_objective_function
from areal_x.launch.server_environment import check_server_environment
from areal_x.launch.trainer_environment import check_evaluation_device, check_trainer_environment
from areal_x.rollout.dataset import DATA_SETS, dataset_name, load_dataset_items
from areal_x.rollout.filters import load_group_filter
from areal_x.rollout.preferences import check_first_pair
from areal_x.trainer.checkpoint_files import is_checkpoint

__all__ = ["checked_config", "dry_run"]

_OWN_KEYS = {
    "data.path": "preferences.path",
    "reward_model.path": "model.path, the model that is trained",
    "train.batch_size": "preferences.batch_size, in pairs",
    "train.learning_rate": "preferences.learning_rate",
    "train.lr_schedule": "preferences.lr_schedule",
    "train.total_steps": "preferences.steps",
    "train.warmup_steps": "preferences.warmup_steps",
}
"""What a reward model's training has under another key."""


def checked_config(command: str, source: ConfigSource, overrides: Sequence[str]) -> ExperimentConfig:
    """Compose and check the configuration of a command: ``train``, ``sft``, ``train-rm`` or ``eval``.

    Data that is made is made once to try; of preference pairs the first one is read.

    Raises:
        ConfigError: one line with the key, the value and what would be valid.
        MissingExtraError: an optional package that the configuration asks for is not installed.
    """
    if command == "train-rm":
        config = compose_config(source, overrides, unused=("data.path",))
        _check_resume(command, config)
        _check_keys_of_preferences(overrides)
        check_reward_training(config)
        _check_extras(config)
        check_first_pair(config)
        check_trainer_environment(config)
        return config
    config = compose_config(source, overrides)
    _check_resume(command, config)
    if command != "eval":
        _export_checkpoint(config)
    if command == "sft":
        config.sft.enabled = True
    check_config(_located(config) if command == "eval" else config)
    if command == "train":
        check_trains(config.rollout)
        _check_critic(config)
    if command == "eval" and config.model.path is None and config.rollout.engine != "openai":
        raise ConfigError("model.path is not set; add model.path=VALUE, the model to evaluate")
    _check_extras(config)
    if config.data.path in DATA_SETS:
        load_dataset_items(config.data)
    if command != "sft":
        _check_reward_names(config)
        _check_rewards_of_sets(config)
        _check_workflow(config)
        _check_functions(config)
        check_server_environment(config, trains=command == "train")
    if command == "eval":
        check_evaluation_device(config)
    else:
        check_trainer_environment(config)
    return config


def _located(config: ExperimentConfig) -> ExperimentConfig:
    """Let ``model.path`` name the model or checkpoint in a run's directory; also gives the configuration as its checks
    see it: of a checkpoint, its model files.

    Raises:
        ConfigError: there is no model in the run.
    """
    from areal_x.trainer.model_places import locate_model

    place = None if config.model.path is None else locate_model(config.model.path)
    if place is None:
        return config
    config.model.path = str(place.path)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(place.model_files)))


def _export_checkpoint(config: ExperimentConfig) -> None:
    """Let ``model.path`` name a checkpoint to begin with: its policy is written beside it as a model, once.

    Raises:
        CheckpointError: it is not whole.
    """
    path = config.model.path
    if path is not None and is_checkpoint(Path(path)):
        from areal_x.trainer.exports import exported_model

        config.model.path = str(exported_model(path, trust_remote_code=config.model.trust_remote_code))


def _check_critic(config: ExperimentConfig) -> None:
    """The critic's model has the head that it needs; torch is loaded only where there is one to look at."""
    if config.uses_critic and config.critic.path is not None:
        from areal_x.trainer.models_beside import check_critic_files

        check_critic_files(config)


def _check_resume(command: str, config: ExperimentConfig) -> None:
    """Of the commands that train, only ``train`` goes on from a checkpoint; ``eval`` has nothing to resume."""
    if command in ("sft", "train-rm") and config.resume != "never":
        raise ConfigError(f"resume={config.resume} is for areal-x train; areal-x {command} always starts anew")


def _check_keys_of_preferences(overrides: Sequence[str]) -> None:
    """Keys of a policy's training that a command names would change nothing, where a file may serve both commands."""
    for override in map(parse_override, overrides):
        own = _OWN_KEYS.get(override.key_or_group)
        if own is not None:
            raise bad_value(override.key_or_group, override.value(), f"is not for areal-x train-rm; use {own}")


def _check_extras(config: ExperimentConfig) -> None:
    """Whether the optional packages are there; nothing is imported."""
    for key, wanted, package, title in (
        ("tensorboard", config.observe.tensorboard, "tensorboard", "TensorBoard"),
        ("wandb", config.observe.wandb, "wandb", "Weights & Biases"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"observe.{key}=true needs {title}: pip install 'areal-x[{key}]'")


def _is_cheap_to_import(spec: str, key: str) -> bool:
    """The user's own file, and what ships here, are imported to be checked. A package may load anything: it is only
    looked for.

    Raises:
        ConfigError: there is no such package.
    """
    given, spec = spec, split_library(spec)[1]
    module = spec.partition(":")[0] if ".py" in spec else spec.rpartition(":")[0] or spec.rpartition(".")[0]
    if ".py" in (spec[-3:], module.rstrip(":")[-3:]) or module.startswith("areal_x."):
        return True
    package = module.partition(".")[0]
    if not package or importlib.util.find_spec(package) is None:
        problem = f"there is no package {package!r}" if package else "names no module"
        raise ConfigError(f"{key}={given!r}: {problem}; write package.module:NAME or file.py:NAME")
    return False


def _check_workflow(config: ExperimentConfig) -> None:
    """The workflow is one, and takes its arguments."""
    workflow = config.workflow
    if _is_cheap_to_import(workflow.path, "workflow.path"):
        from areal_x.workflow.build import load_workflow_class

        load_workflow_class(workflow.path, workflow.kwargs)


def _check_functions(config: ExperimentConfig) -> None:
    """The functions of the algorithm, the filters and the hook of post-processing take their arguments."""
    algorithm, rollout, hook = config.algorithm, config.rollout, config.reward.post_process
    if not is_import_path(algorithm.advantage) or _is_cheap_to_import(algorithm.advantage, "algorithm.advantage"):
        load_advantage(algorithm)
    for field in ("policy_loss", "correction"):
        path = getattr(algorithm, field)
        if not is_import_path(path) or _is_cheap_to_import(path, f"algorithm.{field}"):
            check_objective_function(algorithm, field)
    for key, path, kwargs in (
        ("rollout.filter", rollout.filter, rollout.filter_kwargs),
        ("rollout.early_filter", rollout.early_filter, {}),
    ):
        if path is not None and (not is_import_path(path) or _is_cheap_to_import(path, key)):
            load_group_filter(path, kwargs, key)
    key = "reward.post_process"
    if hook is None or split_library(hook)[0] is not None or not _is_cheap_to_import(hook, key):
        return
    if not callable(load_object(hook, key)):
        raise ConfigError(f"{key}={hook!r} is not a function")


def _check_reward_names(config: ExperimentConfig) -> None:
    """Every reward is known, and takes its options, before anything starts."""
    from areal_x.reward.configured import reward_function

    parts: dict[str, RewardConfig | RewardPartConfig] = {**config.reward.rewards} or {"": config.reward}
    for name, part in parts.items():
        key = f"reward.rewards.{name}" if name else "reward"
        if not name and part.fn == NO_RULE_REWARD:
            continue
        if part.fn is not None and is_import_path(part.fn) and not _is_cheap_to_import(part.fn, f"{key}.fn"):
            continue
        try:
            reward_function(name, part, dataset_name(config.data))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{key}.kwargs={part.kwargs}: {error}") from error


def _check_rewards_of_sets(config: ExperimentConfig) -> None:
    """Every set of the evaluation has a reward: its own, the run's, or the one that its data's name selects."""
    from areal_x.reward.configured import reward_function

    for name, given in config.evaluation.sets.items():
        key, function = f"evaluation.sets.{name}.reward_fn", given.reward_fn
        if function is None and (config.reward.fn is not None or config.reward.rewards):
            continue
        if function is not None and is_import_path(function) and not _is_cheap_to_import(function, key):
            continue
        settings = filled_set(config, given)
        data = dataclasses.replace(config.data, path=settings.path, name=settings.data_name)
        try:
            reward_function("", RewardConfig(fn=function), dataset_name(data))
        except ConfigError as error:
            raise ConfigError(str(error).replace("reward.fn", key)) from error


def dry_run(command: str, source: ConfigSource, overrides: Sequence[str]) -> None:
    """Print the resolved configuration as YAML, then check it.

    Raises:
        ConfigError: as ``checked_config``; what could be composed has been printed by then.
    """
    print(to_yaml(compose_tree(source, overrides)), end="", flush=True)
    checked_config(command, source, overrides)
