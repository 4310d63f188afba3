"""What a run is given beside its configuration: objects of a script, and where its processes are started."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.placement import LocalPlacement, Placement
from areal_x.rollout.finish_group import GroupFilter

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """Objects take the place of what the configuration names.

    Raises:
        ConfigError: one of them is not what it has to be.
    """

    workflow: RolloutWorkflow | type[RolloutWorkflow] | None = None
    """Instead of ``workflow.path``. A class is constructed as one that is named; an instance is used as it is, in
    training and in evaluation."""
    reward_fn: Callable[..., Any] | None = None
    """Instead of ``reward.fn``: any reward function, a lambda too. Synchronous ones run in worker processes."""
    group_filter: GroupFilter | None = None
    """Instead of ``rollout.filter``."""
    placement: Placement = field(default_factory=LocalPlacement)

    def __post_init__(self) -> None:
        given = self.workflow
        cls = given if inspect.isclass(given) else type(given)
        if given is not None and not issubclass(cls, RolloutWorkflow):
            raise ConfigError(f"workflow={given!r} is neither a RolloutWorkflow nor a subclass of it")
        for name, value in (("reward_fn", self.reward_fn), ("group_filter", self.group_filter)):
            if value is not None and not callable(value):
                raise ConfigError(f"{name}={value!r} is not a function")
