"""The held-out data sets of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from areal_x.api.checkpoint_config import EvaluationSetConfig
from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError, DataError
from areal_x.api.evaluation_checks import filled_set
from areal_x.rollout.dataset import Items, load_dataset_items, load_evaluation_items

__all__ = ["HeldOut", "check_best_metric", "load_held_out"]


@dataclass(frozen=True)
class HeldOut:
    """One data set of an evaluation. ``settings`` leave nothing open."""

    name: str
    """In metrics."""
    key: str
    """Where it is configured."""
    items: Items
    settings: EvaluationSetConfig


def load_held_out(config: ExperimentConfig) -> list[HeldOut]:
    """Read ``evaluation.sets``, or the held-out data of ``data``; there may be none.

    Raises:
        DataError: as ``load_dataset_items``; a set holds no items.
    """
    if not config.evaluation.sets:
        settings = filled_set(config)
        items = _first(load_dataset_items(config.data, "eval"), settings.limit)
        return [HeldOut(items.name, "evaluation", items, settings)] if items else []
    found = []
    for name, given in config.evaluation.sets.items():
        key, settings = f"evaluation.sets.{name}", filled_set(config, given)
        assert settings.prompt_key is not None
        data = dataclasses.replace(
            config.data,
            path=settings.path,
            name=settings.data_name,
            split=settings.split,
            subset=settings.subset,
            prompt_key=settings.prompt_key,
            limit=settings.limit,
            kwargs=settings.kwargs,
        )
        try:
            items = _first(load_evaluation_items(data), settings.limit)
        except DataError as error:
            raise DataError(f"{key}: {error}") from error
        found.append(HeldOut(name, key, items, settings))
    return found


def check_best_metric(config: ExperimentConfig, held_out: Sequence[HeldOut]) -> None:
    """Raise where ``checkpoint.best_metric`` is of a data set that the run does not measure.

    Raises:
        ConfigError: names it and what is measured.
    """
    metric = config.checkpoint.best_metric
    if metric is None or any(metric.startswith(f"eval/{one.name}/") for one in held_out):
        return
    measured = " or ".join(f"eval/{one.name}/accuracy" for one in held_out)
    problem = f"is never measured; name one such as {measured}" if measured else "there is no held-out data"
    raise ConfigError(f"checkpoint.best_metric={metric}: {problem}")


def _first(items: Items, limit: int | None) -> Items:
    return dataclasses.replace(items, rows=items.rows[:limit])
