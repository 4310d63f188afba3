"""Checks of a configuration's values and combinations, before anything heavy is imported."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable
from pathlib import Path

from areal_x.api.algorithm_checks import check_algorithm
from areal_x.api.check_values import above_zero, at_least, bad_value, one_of, within
from areal_x.api.checkpoint_checks import check_checkpoints
from areal_x.api.config import ExperimentConfig, RewardConfig
from areal_x.api.data_file_checks import MADE_DATA_SETS, check_data_file, names_a_file
from areal_x.api.errors import ConfigError
from areal_x.api.evaluation_checks import check_evaluation
from areal_x.api.filter_checks import check_filters
from areal_x.api.model_checks import check_model_files, check_model_folder
from areal_x.api.reward_model_checks import RESERVED_NAMES, check_reward_models
from areal_x.api.reward_records import DEFAULT_REWARD_KEY
from areal_x.api.server_checks import check_engine
from areal_x.api.setting_checks import check_reference, check_sampling
from areal_x.api.train_checks import check_cluster, check_lora, check_preferences, check_rank_options, check_ranks

__all__ = ["MODEL_INIT_KEYS", "RESERVED_NAMES", "check_config", "check_reward_training"]

MODEL_INIT_KEYS = (
    "architecture",
    "head_dim",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_length",
    "num_heads",
    "num_kv_heads",
    "num_layers",
    "tie_word_embeddings",
    "tokenizer",
    "vocab_size",
)
"""Keys of ``model.init``."""


def check_config(config: ExperimentConfig) -> None:
    """Raise for the first value or combination that cannot work.

    Raises:
        ConfigError: one line with the key, the value and what would be valid.
    """
    for check in _CHECKS:
        check(config)


def check_reward_training(config: ExperimentConfig) -> None:
    """As ``check_config``, of all that training a reward model uses: no rollout, no reward, none of its data.

    Raises:
        ConfigError: as ``check_config``.
    """
    for check in _CHECKS_OF_REWARD_TRAINING:
        check(config)


def _check_run(config: ExperimentConfig) -> None:
    name = config.name
    if not name or name == "???":
        raise bad_value("name", name, "give the run a name")
    if name in (".", "..") or any(sign in name for sign in "/\\\0\n"):
        raise bad_value("name", name, "the name becomes a folder, so it must not hold / or a line break")
    if not 0 <= config.seed < 2**63:
        raise bad_value("seed", config.seed, "must be from 0 to 2**63 - 1")
    _check_writable(Path(config.runs_dir))


def _check_writable(runs_dir: Path) -> None:
    """The nearest folder that exists must be one, and take new files."""
    folder = runs_dir.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise bad_value("runs_dir", runs_dir, f"{folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise bad_value("runs_dir", runs_dir, f"{folder} cannot be written to")


def _check_data(config: ExperimentConfig) -> None:
    data = config.data
    if data.path in ("", "???"):
        raise bad_value("data.path", data.path, "name a file, a data set on the hub, or arithmetic")
    check_data_file("data.path", data.path)
    if "/" not in data.path and ":" not in data.path and data.path not in MADE_DATA_SETS:
        close = difflib.get_close_matches(data.path, MADE_DATA_SETS, n=1, cutoff=0.75)
        if close and not names_a_file(data.path):
            raise bad_value("data.path", data.path, f"did you mean {close[0]}?")
    check_data_file("data.eval_path", data.eval_path)
    check_data_file("sft.path", config.sft.path if config.sft.enabled else None)
    at_least("data.limit", data.limit, 1)
    if not data.prompt_key:
        raise bad_value("data.prompt_key", repr(data.prompt_key), "name the column that holds the prompt")
    if data.system_prompt is not None and not data.chat_template:
        raise ConfigError("data.system_prompt needs data.chat_template=true: without a template there are no messages")


def _check_model(config: ExperimentConfig) -> None:
    model = config.model
    if model.path is None and model.init is None and config.rollout.engine != "openai":
        raise ConfigError("model.path is not set; name a model, or set model.init to make a new one")
    one_of("model.dtype", model.dtype, ("float32", "bfloat16", "float16"))
    if model.device not in ("auto", "cpu", "cuda") and not model.device.removeprefix("cuda:").isdecimal():
        raise bad_value("model.device", model.device, "must be one of auto, cpu, cuda, or cuda:0 and so on")
    if model.path is not None:
        check_model_folder("model.path", model.path)
    for key, value in (model.init or {}).items():
        one_of("model.init key", str(key), MODEL_INIT_KEYS)
        if isinstance(value, int) and not isinstance(value, bool):
            at_least(f"model.init.{key}", value, 1)
    if model.init is not None:
        _check_model_sizes(model.init)


def _check_model_sizes(init: dict[str, object]) -> None:
    one_of("model.init.architecture", str(init.get("architecture", "qwen3")), ("qwen3",))
    one_of("model.init.tokenizer", str(init.get("tokenizer", "bpe")), ("bpe", "characters"))
    heads, kv_heads = init.get("num_heads"), init.get("num_kv_heads")
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise bad_value("model.init.num_kv_heads", kv_heads, f"must divide num_heads={heads}")


def _check_rollout(config: ExperimentConfig) -> None:
    rollout = config.rollout
    check_engine(config)
    for name in ("group_size", "num_slots", "num_threads", "max_failures_in_a_row"):
        at_least(f"rollout.{name}", getattr(rollout, name), 1)
    at_least("rollout.max_staleness", rollout.max_staleness, 0)
    at_least("rollout.max_length", rollout.max_length, 2)
    at_least("rollout.max_concurrent", rollout.max_concurrent, 1)
    above_zero("rollout.episode_timeout_seconds", rollout.episode_timeout_seconds)
    check_sampling("rollout.sampling", rollout.sampling, training=True)
    if rollout.sampling.max_new_tokens >= rollout.max_length:
        raise bad_value(
            "rollout.sampling.max_new_tokens",
            rollout.sampling.max_new_tokens,
            f"leaves no room for a prompt in rollout.max_length={rollout.max_length}",
        )
    if rollout.max_concurrent is not None and rollout.max_concurrent < rollout.group_size:
        raise bad_value(
            "rollout.max_concurrent", rollout.max_concurrent, f"one group has group_size={rollout.group_size}"
        )
    check_filters(config)


def _check_reward(config: ExperimentConfig) -> None:
    reward = config.reward
    above_zero("reward.timeout_seconds", reward.timeout_seconds)
    at_least("reward.num_workers", reward.num_workers, 1)
    above_zero("reward.memory_limit_gib", reward.memory_limit_gib)
    within("reward.max_failure_rate", reward.max_failure_rate, 0, 1)
    at_least("reward.failure_window", reward.failure_window, 1)
    check_reference("reward.fn", reward.fn)
    check_reference("reward.post_process", reward.post_process)
    check_reference("workflow.path", config.workflow.path)
    if reward.on_failure not in ("drop", "mask", "raise"):
        try:
            finite = math.isfinite(float(reward.on_failure))
        except ValueError:
            finite = False
        if not finite:
            raise bad_value("reward.on_failure", reward.on_failure, "must be drop, mask, raise or a number")
    for key, value in (("reward_key", reward.reward_key), ("eval_reward_key", reward.eval_reward_key)):
        if value == "":
            raise bad_value(f"reward.{key}", "''", "name the key of the reward in a returned dict")
    _check_several_rewards(config)
    _check_shaping(config)


def _check_several_rewards(config: ExperimentConfig) -> None:
    reward = config.reward
    for key, value in (("fn", reward.fn), ("kwargs", reward.kwargs or None), ("group", reward.group)):
        if reward.rewards and value is not None:
            fix = "reward.rewards is set, too; say it there, for the reward that it belongs to"
            raise bad_value(f"reward.{key}", value, fix)
    for name, part in reward.rewards.items():
        key = f"reward.rewards.{name}"
        if not name or "/" in name or name in RESERVED_NAMES:
            fix = f"a reward's name must not be empty, hold a / or be one of {', '.join(RESERVED_NAMES)}"
            raise bad_value(key, name, fix)
        if not math.isfinite(part.weight):
            raise bad_value(f"{key}.weight", part.weight, "must be a finite number")
        if not part.reward_key:
            raise bad_value(f"{key}.reward_key", repr(part.reward_key), "name the key of the reward in a returned dict")
        above_zero(f"{key}.timeout_seconds", part.timeout_seconds)
        check_reference(f"{key}.fn", part.fn)
    weights = [part.weight for part in reward.rewards.values()]
    weights += [model.weight for model in config.used_reward_models.values()]
    if reward.rewards and not any(weights):
        raise bad_value("reward.rewards", "all weights 0", "nothing could be learnt; give one of them another weight")
    one_of("reward.aggregation", reward.aggregation, ("normalize_then_sum", "sum_then_normalize"))
    if reward.aggregation == "normalize_then_sum":
        _check_normalized_sum(reward)
        if config.uses_critic or (config.uses_reference and config.algorithm.kl_in == "reward"):
            fix = "a critic, and KL in the reward, need the rewards' sum; use sum_then_normalize"
            raise bad_value("reward.aggregation", reward.aggregation, fix)


def _check_normalized_sum(reward: RewardConfig) -> None:
    shapes = reward.post_process, reward.clip, reward.overlong.buffer_tokens, reward.overlong.buffer_share
    if any(shapes) or (reward.scale, reward.bias) != (1.0, 0.0):
        fix = "scale, bias, clip, overlong and post_process change the sum; they need sum_then_normalize"
        raise bad_value("reward.aggregation", reward.aggregation, fix)
    if not reward.rewards:
        raise bad_value("reward.aggregation", reward.aggregation, "there is one reward; list several in reward.rewards")
    if reward.on_failure not in ("drop", "mask", "raise"):
        fix = "a number cannot stand for several rewards; use drop, mask or raise with normalize_then_sum"
        raise bad_value("reward.on_failure", reward.on_failure, fix)
    if reward.reward_key != DEFAULT_REWARD_KEY:
        fix = "picks one of several rewards; with normalize_then_sum each counts by its weight"
        raise bad_value("reward.reward_key", reward.reward_key, fix)


def _check_shaping(config: ExperimentConfig) -> None:
    reward = config.reward
    if reward.scale == 0:
        raise bad_value("reward.scale", 0, "makes all rewards equal, so nothing could be learnt")
    for name, value in (("scale", reward.scale), ("bias", reward.bias)):
        if not math.isfinite(value):
            raise bad_value(f"reward.{name}", value, "must be a finite number")
    if reward.clip is not None and (len(reward.clip) != 2 or not reward.clip[0] < reward.clip[1]):
        raise bad_value("reward.clip", reward.clip, "must be two numbers, the lower one first")
    at_least("reward.overlong.penalty", reward.overlong.penalty, 0)
    limit = config.rollout.sampling.max_new_tokens
    if not 0 <= reward.overlong.buffer_tokens <= limit:
        fix = f"must be from 0 to rollout.sampling.max_new_tokens={limit}"
        raise bad_value("reward.overlong.buffer_tokens", reward.overlong.buffer_tokens, fix)
    within("reward.overlong.buffer_share", reward.overlong.buffer_share, 0, 1)


def _check_train(config: ExperimentConfig) -> None:
    train, group_size = config.train, config.rollout.group_size
    at_least("train.batch_size", train.batch_size, 1)
    if train.batch_size % group_size:
        near = max(group_size, round(train.batch_size / group_size) * group_size)
        raise bad_value(
            "train.batch_size",
            train.batch_size,
            f"must be a multiple of rollout.group_size={group_size}, such as {near}",
        )
    at_least("train.total_steps", train.total_steps, 0)
    at_least("train.learning_rate", train.learning_rate, 0)
    one_of("train.lr_schedule", train.lr_schedule, ("constant", "cosine", "linear"))
    at_least("train.warmup_steps", train.warmup_steps, 0)
    within("train.min_lr_ratio", train.min_lr_ratio, 0, 1)
    at_least("train.weight_decay", train.weight_decay, 0)
    if len(train.betas) != 2 or not all(0 <= beta < 1 for beta in train.betas):
        raise bad_value("train.betas", train.betas, "must be two numbers, each from 0 to below 1")
    above_zero("train.max_grad_norm", train.max_grad_norm)
    for name in ("micro_batch_tokens", "part_samples", "logprob_chunk_tokens", "num_threads", "max_skipped_in_a_row"):
        at_least(f"train.{name}", getattr(train, name), 1)


def _check_sft(config: ExperimentConfig) -> None:
    sft = config.sft
    at_least("sft.steps", sft.steps, 0)
    at_least("sft.batch_size", sft.batch_size, 1)
    at_least("sft.learning_rate", sft.learning_rate, 0)
    at_least("sft.warmup_steps", sft.warmup_steps, 0)
    one_of("sft.lr_schedule", sft.lr_schedule, ("constant", "cosine", "linear"))


_CHECKS: tuple[Callable[[ExperimentConfig], None], ...] = (
    _check_run,
    _check_rollout,
    _check_train,
    check_cluster,
    check_ranks,
    check_lora,
    check_reward_models,
    check_algorithm,
    check_checkpoints,
    _check_data,
    _check_model,
    check_model_files,
    _check_reward,
    _check_sft,
    check_evaluation,
)
_CHECKS_OF_REWARD_TRAINING = (
    _check_run,
    _check_train,
    check_cluster,
    check_rank_options,
    check_preferences,
    _check_model,
    check_evaluation,
)
