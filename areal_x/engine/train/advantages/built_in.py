"""The function that ``algorithm.advantage`` names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from areal_x.api.advantage_api import AdvantageFunction
from areal_x.api.bound_functions import bound_function
from areal_x.api.config import AlgorithmConfig
from areal_x.engine.train.advantages.groups import group, raft
from areal_x.engine.train.advantages.tokens import gae, reinforce_pp, reinforce_pp_baseline

__all__ = ["ADVANTAGE_FUNCTIONS", "load_advantage"]

ADVANTAGE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "group": group,
    "gae": gae,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "raft": raft,
}
"""Functions by the names that ``algorithm.advantage`` knows them by."""

_SETTINGS = ("baseline", "scale_by", "discount", "gae_lambda")
"""Fields of the algorithm that a function gets when it names them as arguments."""


def load_advantage(algorithm: AlgorithmConfig) -> AdvantageFunction:
    """The function that ``algorithm.advantage`` names, built in or ``file.py:function``, its arguments bound.

    Beside the samples it gets ``algorithm.advantage_kwargs``, and of the algorithm's ``baseline``, ``scale_by``,
    ``discount`` and ``gae_lambda`` those that it names.

    Raises:
        ConfigError: there is no such function, or it does not take its arguments.
    """
    return bound_function(
        "algorithm.advantage",
        algorithm.advantage,
        ADVANTAGE_FUNCTIONS,
        algorithm.advantage_kwargs,
        {name: getattr(algorithm, name) for name in _SETTINGS},
    )
