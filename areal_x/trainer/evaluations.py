"""When the policy is evaluated during training, and how new weights wait for that.

::

    step k ──▶ version v live ──▶ evaluation of v begins ┄┄ its episodes run ┄┄▶ sampled ┄┄ scored ┄┄▶ its metrics
                                      └─ steps k + 1, k + 2, ... train meanwhile; hold: their weights wait ─┘ go live

With ``evaluation.updates=hold`` no weights go live until every episode has ended, so that version v alone is measured;
steps go on with what the staleness bound admits, and of the weights that wait only the newest go live. With ``pass``
they go live at once. Runs whose engine and trainer take turns (synchronous, colocated) are evaluated between two steps.

| who | consumes | waits for | is unblocked by | produces |
| --- | --- | --- | --- | --- |
| evaluation | held-out items | the one before it | its end | metrics of one version |
| publication (hold) | staged weights | the evaluation's episodes | ``on_sampled`` | live weights |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from areal_x.api.config import ExperimentConfig

__all__ = ["Evaluations"]

Evaluate = Callable[[int, int, Callable[[], None] | None], Awaitable[Any]]
"""``evaluate(step, version, on_sampled)``; see ``Evaluator.evaluate``."""


class Evaluations:
    """Starts evaluations in the trainer's group of tasks, one at a time.

    Args:
        evaluate: measures the weights that are live. It calls its third argument once every episode has ended; with
            ``None`` in its place nothing else goes on meanwhile.
    """

    def __init__(self, config: ExperimentConfig, evaluate: Evaluate) -> None:
        self._every = config.evaluation.every_steps
        self._last_step = config.train.total_steps
        self._evaluate = evaluate
        self._holds = config.evaluation.updates == "hold"
        self._under_way: asyncio.Task[None] | None = None
        self._sampled = asyncio.Event()
        self._sampled.set()
        self.between_steps = config.rollout.colocated or config.rollout.max_staleness == 0
        """Whether training waits for each evaluation."""

    def is_due(self, step: int) -> bool:
        """Whether the weights after ``step`` are to be evaluated; those after the last step are, too, by the run."""
        return self._every > 0 and step % self._every == 0 and step < self._last_step

    @property
    def hold_weights(self) -> bool:
        """Whether no new weights may go live now."""
        return self._holds and not self._sampled.is_set()

    async def weights_may_change(self) -> None:
        """Wait until new weights may go live."""
        if self._holds:
            await self._sampled.wait()

    async def begin(self, step: int, version: int, group: asyncio.TaskGroup) -> None:
        """Start to evaluate ``version``, which is live; wait for the evaluation before it, if need be, and where
        nothing goes on meanwhile for this one."""
        if self.between_steps:
            await self._evaluate(step, version, None)
            return
        if self._under_way is not None:
            await self._under_way
        self._sampled.clear()
        self._under_way = group.create_task(self._run(step, version), name=f"evaluate version {version}")

    async def _run(self, step: int, version: int) -> None:
        try:
            await self._evaluate(step, version, self._sampled.set)
        finally:
            self._sampled.set()
