"""The contract of a workflow: one class with one asynchronous method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from areal_x.api.engine_api import Generator
from areal_x.api.records import Trajectory

__all__ = ["RolloutWorkflow"]


class RolloutWorkflow(ABC):
    """Turns one data item into one sample.

    The constructor may take, by name, ``reward_fn`` (an ``AsyncRewardWrapper``), ``tokenizer``, ``sampling``
    (``SamplingParams``) and ``prompt_key``; whatever else it takes comes from ``workflow.kwargs`` of the configuration.
    """

    @abstractmethod
    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
        """Run one episode.

        Args:
            engine: all that a workflow sees of an inference engine: ``await engine.agenerate(request)``.
            data: one item of the data set, as a dict of its columns.

        Returns:
            The sample (or several that belong to one sample), or ``None`` to reject the episode on purpose.
        """
