"""What an evaluation measures, from its configuration, and the checks of that."""

from __future__ import annotations

from dataclasses import replace

from areal_x.api.check_values import at_least, bad_value, one_of
from areal_x.api.checkpoint_config import EvaluationSetConfig
from areal_x.api.config import ExperimentConfig
from areal_x.api.data_file_checks import check_data_file
from areal_x.api.setting_checks import check_reference, check_sampling

__all__ = ["UPDATES", "check_evaluation", "filled_set", "majorities_at", "passes_at"]

UPDATES = ("hold", "pass")
"""Values of ``evaluation.updates``."""


def filled_set(config: ExperimentConfig, given: EvaluationSetConfig | None = None) -> EvaluationSetConfig:
    """A data set of the evaluation with every setting that it takes from ``evaluation``, ``data`` and ``reward``.

    Args:
        given: one of ``evaluation.sets``; ``None`` for the held-out data of ``data``.
    """
    data, evaluation = config.data, config.evaluation
    given = given or EvaluationSetConfig(path=data.eval_path or data.path, data_name=data.name)
    is_same = given.path == data.path
    return replace(
        given,
        subset=data.subset if given.subset is None and is_same else given.subset,
        data_name=data.name if given.data_name is None and is_same else given.data_name,
        prompt_key=given.prompt_key or data.prompt_key,
        limit=evaluation.limit if given.limit is None else given.limit,
        group_size=evaluation.group_size if given.group_size is None else given.group_size,
        sampling=given.sampling or evaluation.sampling,
        reward_key=given.reward_key or config.reward.eval_reward_key,
        kwargs=(data.kwargs if is_same else {}) | given.kwargs,
    )


def passes_at(config: ExperimentConfig, group_size: int) -> list[int]:
    """The k of ``pass@k`` for data with ``group_size`` samples of a prompt."""
    return sorted(set(config.evaluation.pass_at or (1, group_size)))


def majorities_at(config: ExperimentConfig, group_size: int) -> list[int]:
    """The k of ``majority@k``, likewise."""
    return sorted(set(config.evaluation.majority_at or ((group_size,) if group_size > 2 else ())))


def check_evaluation(config: ExperimentConfig) -> None:
    """Raise for the first value or combination that cannot be evaluated.

    Raises:
        ConfigError: one line with the key, the value and what would be valid.
    """
    evaluation = config.evaluation
    at_least("evaluation.every_steps", evaluation.every_steps, 0)
    at_least("evaluation.limit", evaluation.limit, 1)
    at_least("evaluation.group_size", evaluation.group_size, 1)
    one_of("evaluation.updates", evaluation.updates, UPDATES)
    check_sampling("evaluation.sampling", evaluation.sampling, training=False)
    at_least("observe.trajectories_per_step", config.observe.trajectories_per_step, -1)
    if not evaluation.sets:
        _check_samples(config, "evaluation", filled_set(config))
    elif config.data.eval_path is not None:
        fix = "evaluation.sets is set, too; name this data there"
        raise bad_value("data.eval_path", config.data.eval_path, fix)
    for name, given in evaluation.sets.items():
        _check_set(config, name, given)


def _check_set(config: ExperimentConfig, name: str, given: EvaluationSetConfig) -> None:
    key = f"evaluation.sets.{name}"
    if not name or "/" in name:
        raise bad_value("evaluation.sets", repr(name), "a name becomes a part of metrics; it must hold no /")
    if given.path in ("", "???"):
        raise bad_value(f"{key}.path", given.path, "name a file, a data set on the hub, or arithmetic")
    check_data_file(f"{key}.path", given.path)
    at_least(f"{key}.limit", given.limit, 1)
    at_least(f"{key}.group_size", given.group_size, 1)
    if given.sampling is not None:
        check_sampling(f"{key}.sampling", given.sampling, training=False)
    check_reference(f"{key}.reward_fn", given.reward_fn)
    for field, value in (("prompt_key", given.prompt_key), ("reward_key", given.reward_key)):
        if value == "":
            raise bad_value(f"{key}.{field}", "''", "name a column" if field == "prompt_key" else "name a key")
    _check_samples(config, key, filled_set(config, given))


def _check_samples(config: ExperimentConfig, key: str, filled: EvaluationSetConfig) -> None:
    """Every k has k samples, and they can differ."""
    assert filled.group_size is not None and filled.sampling is not None
    for field, ks in (("pass_at", config.evaluation.pass_at), ("majority_at", config.evaluation.majority_at)):
        for k in ks:
            at_least(f"evaluation.{field}", k, 1)
            if k > filled.group_size:
                fix = f"is more than the samples of a prompt, {key}.group_size={filled.group_size}"
                raise bad_value(f"evaluation.{field}", k, fix)
            if k > 1 and filled.sampling.temperature == 0:
                fix = f"greedy samples of a prompt are all alike; set {key}.sampling.temperature above 0"
                raise bad_value(f"evaluation.{field}", k, fix)
    if filled.group_size > 1 and filled.sampling.temperature == 0:
        fix = f"greedy samples of a prompt are all alike; use 1, or set {key}.sampling.temperature above 0"
        raise bad_value(f"{key}.group_size", filled.group_size, fix)
