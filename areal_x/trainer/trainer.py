"""The loop: groups in, one optimiser step, new weights out, while episodes go on all the time.

    item stream ──▶ RolloutExecutor ──groups──▶ build_batch ──▶ TrainEngine.train_step ──▶ WeightSync.publish(version + 1)
                          ▲                                                                        │
                          └────────────── on_published: places of the step are free ◀──────────────┘

| who | consumes | waits for | is unblocked by | produces |
| --- | --- | --- | --- | --- |
| executor | items | a place under the staleness bound | ``on_published``, an episode's end | groups |
| trainer | groups | a step's groups (``next_batch``) | the executor | weights of the next version |
| engine | requests, weights | a slot | a completion's end | tokens with the version of their weights |
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine, TrainEngine, WeightSync
from areal_x.api.records import TrajectoryGroup
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.rollout.executor import RolloutExecutor
from areal_x.trainer.batch import build_batch, reward_metrics
from areal_x.trainer.rollout_metrics import rollout_metrics
from areal_x.trainer.sample_records import sample_records
from areal_x.trainer.step_clock import StepClock
from areal_x.trainer.trainer_thread import TrainerThread

__all__ = ["Trainer"]


class Trainer:
    """Asynchronous policy optimisation on groups of trajectories (AReaL, https://arxiv.org/abs/2505.24298, section 4).

    Args:
        evaluate: ``await evaluate(step, version)`` measures the policy as it is served now and reports its metrics.
        decode_tokens: the text of each token of a sequence, for the records that people look at.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        executor: RolloutExecutor,
        engine: InferenceEngine,
        train_engine: TrainEngine,
        weight_sync: WeightSync,
        thread: TrainerThread,
        writer: RunWriter,
        display: RunDisplay,
        evaluate: Callable[[int, int], Awaitable[dict[str, float]]],
        decode_tokens: Callable[[Any], list[str]],
    ) -> None:
        self.config = config
        self.executor = executor
        self.engine = engine
        self.train_engine = train_engine
        self.weight_sync = weight_sync
        self.thread = thread
        self.writer = writer
        self.display = display
        self.evaluate = evaluate
        self.decode_tokens = decode_tokens
        self.clock = StepClock()

    async def run(self) -> None:
        """Train ``train.total_steps`` steps."""
        self.clock.restart(**await self._busy_seconds())
        for step in range(1, self.config.train.total_steps + 1):
            started = time.monotonic()
            groups = await self.executor.next_batch(self.train_engine.version)
            received = time.monotonic()
            batch, advantages = build_batch(groups, normalize_std=self.config.algorithm.normalize_std)
            stats = await self.thread.call(self.train_engine.train_step, batch)
            trained = time.monotonic()
            await self.publish()
            published = time.monotonic()
            self.writer.add_span("training", f"step {step}", received, trained)
            metrics = {"step": step, "version": self.train_engine.version - 1} | stats | reward_metrics(groups)
            metrics |= await self._schedule_metrics(groups, received - started, published - trained)
            self._report(metrics, groups, advantages)
            if self._is_evaluation_due(step):
                await self.evaluate(step, self.train_engine.version)

    async def publish(self) -> None:
        """Serve the trained weights as the next version; requests in flight go on."""
        version = self.train_engine.version + 1
        started = time.monotonic()
        await self.weight_sync.publish(version)
        self.writer.add_span("weights", f"version {version}", started, time.monotonic())
        self.train_engine.version = version
        self.executor.on_published(version)

    async def _schedule_metrics(
        self, groups: list[TrajectoryGroup], wait_seconds: float, publish_seconds: float
    ) -> dict[str, float]:
        num_samples = sum(len(group.trajectories) for group in groups)
        timing = self.clock.finish_step(
            num_samples=num_samples,
            publish_seconds=publish_seconds,
            wait_seconds=wait_seconds,
            **await self._busy_seconds(),
        )
        return rollout_metrics(self.executor) | timing

    async def _busy_seconds(self) -> dict[str, float]:
        health = await self.engine.health()
        return {"generation": health.busy_seconds, "training": self.thread.busy_seconds}

    def _report(self, metrics: dict[str, Any], groups: list[TrajectoryGroup], advantages: Any) -> None:
        records = sample_records(
            groups,
            advantages,
            self.decode_tokens,
            step=metrics["step"],
            version=metrics["version"],
            count=self.config.observe.trajectories_per_step,
        )
        self.writer.write_trajectories(records)
        self.writer.write_step(metrics)
        self.display.step(metrics)

    def _is_evaluation_due(self, step: int) -> bool:
        every = self.config.evaluation.every_steps
        return every > 0 and step % every == 0 and step < self.config.train.total_steps
