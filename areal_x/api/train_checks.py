"""Checks of what trains and where: adapters, ranks, clusters, reward models."""

from __future__ import annotations

import re
from importlib.util import find_spec

from areal_x.api.check_values import above_zero, at_least, bad_value, one_of
from areal_x.api.config import ExperimentConfig, RolloutConfig
from areal_x.api.data_file_checks import check_data_file
from areal_x.api.errors import ConfigError, MissingExtraError
from areal_x.api.server_checks import SERVER_ENGINES, is_loopback

__all__ = ["check_cluster", "check_lora", "check_preferences", "check_rank_options", "check_ranks"]

_MAX_SERVED_RANK = 512
"""vLLM has no kernels for larger ones."""
_FIRST_RAY = (2, 55)


def check_cluster(config: ExperimentConfig) -> None:
    """Refuse a cluster that cannot be used as it is described, or without Ray in a version that is supported.

    Raises:
        ConfigError: names ``cluster....``, its value and what to use.
        MissingExtraError: Ray is not installed.
    """
    cluster, rollout = config.cluster, config.rollout
    one_of("cluster.kind", cluster.kind, ("local", "ray"))
    at_least("cluster.num_nodes", cluster.num_nodes, 1)
    at_least("cluster.gpus_per_node", cluster.gpus_per_node, 0)
    at_least("cluster.max_restarts", cluster.max_restarts, 0)
    if cluster.kind == "local":
        for key, asks in (
            ("num_nodes", cluster.num_nodes > 1),
            ("gpus_per_node", cluster.gpus_per_node is not None),
            ("address", cluster.address is not None),
            ("driver_on_cluster", cluster.driver_on_cluster),
        ):
            if asks:
                raise bad_value(f"cluster.{key}", getattr(cluster, key), "needs a cluster; add cluster=ray")
        return
    if find_spec("ray") is None:
        raise MissingExtraError("cluster.kind=ray needs Ray: pip install 'areal-x[ray]'")
    from importlib.metadata import version

    installed = version("ray")
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) < _FIRST_RAY:
        raise ConfigError(f"cluster.kind=ray: Ray {installed} is too old, 2.55 or newer is needed: pip install -U ray")
    if config.model.device.startswith("cuda:"):
        raise bad_value("model.device", config.model.device, "Ray deals out the GPUs of a cluster; use cuda or auto")
    if rollout.engine in SERVER_ENGINES and not rollout.base_urls:
        _check_placed_servers(rollout)


def _check_placed_servers(rollout: RolloutConfig) -> None:
    server = rollout.server
    if rollout.colocated:
        fix = "with cluster.kind=ray every server has GPUs of its own; set it to false, or use cluster=local"
        raise bad_value("rollout.colocated", "true", fix)
    for key, asks in (("gpus", server.gpus is not None), ("host", not is_loopback(server.host))):
        if asks:
            fix = "with cluster.kind=ray servers get GPUs and address from the cluster; leave it out"
            raise bad_value(f"rollout.server.{key}", getattr(server, key), fix)


def check_ranks(config: ExperimentConfig) -> None:
    """Refuse ranks that cannot share the work of a policy, and options of training that do not go together.

    Raises:
        ConfigError: names ``train....``, its value and what to use.
    """
    check_rank_options(config)
    train = config.train
    if train.num_ranks > 1 and config.rollout.colocated:
        fix = "only one process can take turns with servers on its GPU; use 1, or set rollout.colocated=false"
        raise bad_value("train.num_ranks", train.num_ranks, fix)
    _check_share(config, "train.batch_size / algorithm.num_mini_batches", _samples_of_a_step(config))
    if config.sft.enabled:
        _check_share(config, "sft.batch_size", config.sft.batch_size)


def check_rank_options(config: ExperimentConfig) -> None:
    """The part of ``check_ranks`` that is of all training, that of reward models too.

    Raises:
        ConfigError: as ``check_ranks``.
        MissingExtraError: Liger is asked for and not installed.
    """
    train = config.train
    for name in ("num_ranks", "sequence_parallel"):
        at_least(f"train.{name}", getattr(train, name), 1)
    above_zero("train.rank_timeout_seconds", train.rank_timeout_seconds)
    one_of("train.mixed_precision", train.mixed_precision, ("auto", "bfloat16", "float32"))
    if train.num_ranks % train.sequence_parallel:
        fix = f"ranks that share a micro-batch must divide train.num_ranks={train.num_ranks}"
        raise bad_value("train.sequence_parallel", train.sequence_parallel, fix)
    if config.model.device == "cpu" and train.cpu_offload:
        fix = "with model.device=cpu weights are in the host's memory anyway; set it to false"
        raise bad_value("train.cpu_offload", "true", fix)
    if config.model.device == "cpu" and train.liger:
        raise bad_value("train.liger", "true", "Liger's kernels need a GPU, and model.device=cpu; set it to false")
    if train.liger and find_spec("liger_kernel") is None:
        raise MissingExtraError("train.liger=true needs Liger: pip install 'areal-x[liger]'")


def _samples_of_a_step(config: ExperimentConfig) -> int:
    """Samples of the smallest optimiser step; groups stay whole."""
    groups = config.groups_per_step // max(1, config.algorithm.num_mini_batches)
    return max(1, groups) * config.rollout.group_size


def _check_share(config: ExperimentConfig, what: str, num_samples: int) -> None:
    """Every rank (group of them, with sequence parallelism) gets a sequence of each step."""
    train = config.train
    if num_samples < train.num_ranks // train.sequence_parallel:
        fix = f"{what} gives a step {num_samples} samples, which is fewer; use {num_samples} ranks at most"
        raise bad_value("train.num_ranks", train.num_ranks, fix)


def check_lora(config: ExperimentConfig) -> None:
    """Refuse adapters that cannot be trained, or not be published the way that is asked for.

    Raises:
        ConfigError: names ``train.lora....`` or ``rollout.server.weights``, its value and what to use.
    """
    lora, rollout = config.train.lora, config.rollout
    at_least("train.lora.rank", lora.rank, 0)
    above_zero("train.lora.alpha", lora.alpha)
    for target in lora.targets:
        if not target or "." in target:
            fix = "names a layer by the last part of its name, such as q_proj"
            raise bad_value("train.lora.targets", repr(target), fix)
    if lora.targets and not lora.rank:
        raise bad_value("train.lora.targets", lora.targets, "needs train.lora.rank above 0, such as 16")
    if lora.rank and find_spec("peft") is None:
        raise ConfigError("train.lora.rank needs peft, which is not installed: pip install 'areal-x[lora]'")
    if rollout.server.weights != "lora":
        return
    if rollout.engine not in SERVER_ENGINES:
        fix = f"is for vllm and sglang, and rollout.engine={rollout.engine}; use auto: adapters are merged for it"
        raise bad_value("rollout.server.weights", "lora", fix)
    if not lora.rank:
        raise bad_value("rollout.server.weights", "lora", "sends adapters, and none are trained; set train.lora.rank")
    if rollout.engine == "vllm" and lora.rank > _MAX_SERVED_RANK:
        fix = f"vLLM serves adapters up to rank {_MAX_SERVED_RANK}; use less, or rollout.server.weights=auto"
        raise bad_value("train.lora.rank", lora.rank, fix)


def check_preferences(config: ExperimentConfig) -> None:
    """Refuse preference data that is not there, and a training of a reward model that cannot work.

    Raises:
        ConfigError: names ``preferences....`` or ``train....``, its value and what to use.
    """
    preferences, train = config.preferences, config.train
    if not preferences.path:
        raise bad_value("preferences.path", preferences.path, "name a file of preference pairs, or a hub data set")
    check_data_file("preferences.path", preferences.path)
    check_data_file("preferences.eval_path", preferences.eval_path)
    for name in ("prompt_key", "chosen_key", "rejected_key"):
        if not getattr(preferences, name):
            raise bad_value(f"preferences.{name}", "''", "name the column")
    if preferences.chosen_key == preferences.rejected_key:
        fix = "is the column of the chosen answers, too; name the one of the rejected answers"
        raise bad_value("preferences.rejected_key", preferences.rejected_key, fix)
    for name, bound in (("steps", 1), ("batch_size", 1), ("learning_rate", 0), ("warmup_steps", 0), ("max_length", 2)):
        at_least(f"preferences.{name}", getattr(preferences, name), bound)
    one_of("preferences.lr_schedule", preferences.lr_schedule, ("constant", "cosine", "linear"))
    if train.sequence_parallel > 1:
        fix = "reward models are trained without sequence parallelism; use 1, and more of train.num_ranks"
        raise bad_value("train.sequence_parallel", train.sequence_parallel, fix)
    _check_share(config, "preferences.batch_size", preferences.batch_size)
    if train.lora.rank:
        raise bad_value("train.lora.rank", train.lora.rank, "reward models are trained whole; use 0")
