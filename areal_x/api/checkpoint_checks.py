"""Checks of when checkpoints are written, and which of them are kept."""

from __future__ import annotations

from areal_x.api.check_values import at_least, bad_value, one_of
from areal_x.api.config import ExperimentConfig

__all__ = ["check_checkpoints"]

_RESUME_WORDS = {"true": "auto", "false": "never", "yes": "auto", "no": "never", "none": "never", "null": "never"}
_METRIC_PREFIX = "eval/"


def check_checkpoints(config: ExperimentConfig) -> None:
    """Refuse checkpoints that would not be written as asked; what ``resume`` names is looked for when a run starts.

    Raises:
        ConfigError: names ``checkpoint....`` or ``resume``, its value and what would be valid.
    """
    checkpoint = config.checkpoint
    for name, bound in (
        ("every_steps", 0),
        ("keep_last", 1),
        ("keep_best", 1),
        ("export_every_steps", 0),
        ("max_failures_in_a_row", 1),
    ):
        at_least(f"checkpoint.{name}", getattr(checkpoint, name), bound)
    one_of("checkpoint.best_is", checkpoint.best_is, ("highest", "lowest"))
    if checkpoint.best_metric is not None:
        _check_best(config, checkpoint.best_metric)
    if not config.resume:
        raise bad_value("resume", "''", "must be never, auto, or the directory of a run or checkpoint")
    word = config.resume.lower()
    if word in _RESUME_WORDS or (word in ("never", "auto") and config.resume != word):
        raise bad_value("resume", config.resume, f"did you mean {_RESUME_WORDS.get(word, word)}?")


def _check_best(config: ExperimentConfig, metric: str) -> None:
    """It is measured, and while checkpoints are written."""
    key = "checkpoint.best_metric"
    if not config.checkpoint.every_steps:
        raise bad_value(key, metric, "no checkpoints are written with checkpoint.every_steps=0")
    name, slash, rest = metric.removeprefix(_METRIC_PREFIX).partition("/")
    if not (metric.startswith(_METRIC_PREFIX) and name and slash and rest):
        raise bad_value(key, metric, "must be a metric of an evaluation, such as eval/gsm8k/accuracy")
    if config.evaluation.sets:
        one_of(f"{key}: the data set of {metric}", name, config.evaluation.sets)
    if not config.evaluation.every_steps:
        fix = "evaluation.every_steps=0 measures before and after the run only; set it, such as to "
        raise bad_value(key, metric, f"{fix}{config.checkpoint.every_steps}")
