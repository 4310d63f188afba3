"""The loop: groups in, one optimiser step, new weights out, while episodes go on all the time.

    item stream ──▶ RolloutExecutor ──groups──▶ PolicyStep: advantages, then the train engine's update
                          ▲                                                     │
                          │                                                     ▼
                          └──── on_published: places of the step are free ◀── WeightSync.stage, publish

Reward models score a step's groups before ``PolicyStep`` (``reward_models.py``); groups that the filter then rejects
are replaced by further ones.

A step is taken in parts, each when the trainer gets to it: what is finished while a step goes on can still join it, and
so waits, and ages, less. Synchronous steps, mini-batches and algorithms that look at all samples take the whole batch.
Weights are staged (copied out) before the next step may change them, and become live while that step trains already.

Colocated, engine and trainer share a device and take turns: a step takes all its groups, the engine sleeps, the trainer
trains and gives its spare memory back, and the new weights wake the engine before the next step begins.

| who | consumes | waits for | is unblocked by | produces |
| --- | --- | --- | --- | --- |
| executor | items | a place under the staleness bound | ``on_published``, an episode's end | groups |
| trainer | groups | a part's groups (``next_groups``) | the executor | weights of the next version |
| engine | requests, weights | a slot | a completion's end | tokens with the version of their weights |
"""

from __future__ import annotations

import asyncio
import time

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import Critic, InferenceEngine, TrainEngine, WeightSync
from areal_x.api.records import TrajectoryGroup
from areal_x.rollout.executor import RolloutExecutor
from areal_x.trainer.checkpointer import Checkpointer
from areal_x.trainer.evaluations import Evaluations
from areal_x.trainer.nonfinite import NonFiniteSteps
from areal_x.trainer.policy_step import PolicyStep, StepOutcome
from areal_x.trainer.reward_models import RewardModels
from areal_x.trainer.rollout_metrics import engine_metrics, rollout_metrics
from areal_x.trainer.step_clock import BusyTotals, StepClock
from areal_x.trainer.step_report import FinishedStep, StepReporter
from areal_x.trainer.trainer_thread import TrainerThread

__all__ = ["Trainer"]


class Trainer:
    """Asynchronous policy optimisation on groups of trajectories (AReaL, https://arxiv.org/abs/2505.24298, section 4).

    Args:
        thread: where the train engine works.
        reporter: told of each finished step.
        evaluations: measure the policy after some steps.
        reward_models: what scores the groups beside the rule rewards, if anything.
        nonfinite: watches for steps whose numbers are not finite, if anything does.
        critic: the value model, where advantages need one.
        checkpointer: takes the checkpoints that are due after a step.
        steps_done: by an earlier run, which goes on here.
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
        reporter: StepReporter,
        evaluations: Evaluations,
        reward_models: RewardModels | None = None,
        critic: Critic | None = None,
        nonfinite: NonFiniteSteps | None = None,
        checkpointer: Checkpointer | None = None,
        steps_done: int = 0,
    ) -> None:
        self.config = config
        self.executor = executor
        self.engine = engine
        self.train_engine = train_engine
        self.weight_sync = weight_sync
        self.thread = thread
        self.reporter = reporter
        self.evaluations = evaluations
        self.reward_models = reward_models
        self.checkpointer = checkpointer
        self.steps_done = steps_done
        self._is_colocated = config.rollout.colocated
        self._is_synchronous = config.rollout.max_staleness == 0
        self.policy_step = PolicyStep(config, train_engine, critic, nonfinite)
        self._unreported: FinishedStep | None = None
        self._update_seconds: dict[str, float] = {}
        self._staging = asyncio.Lock()
        self._is_publication_held = False

    async def run(self) -> None:
        """Train ``train.total_steps`` steps; the weights of the last one are live when this returns."""
        self._clock = StepClock(await self._busy_totals(), takes_turns=self._is_colocated)
        try:
            await self._run_steps()
        finally:
            if self.checkpointer is not None:
                self.checkpointer.close()
            self._report()

    async def _run_steps(self) -> None:
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(self._nothing_to_publish(), name="publish")
            for step in range(self.steps_done + 1, self.config.train.total_steps + 1):
                # The peak of the step before is over. Colocated servers have the device until the groups are done.
                if self.reward_models is not None and not self._is_colocated:
                    await self.reward_models.prefetch()
                finished = await self._train_step(step)
                if not self._is_publication_held:  # Else these weights take the place of those that wait.
                    await publishing
                self.train_engine.version += 1
                await self._stage(self.train_engine.version)
                self._unreported = finished
                if self._is_synchronous:  # A checkpoint holds nothing of the next step then, which repeats bitwise.
                    await self._keep(step, group)
                is_due, overlaps = self.evaluations.is_due(step), self._evaluation_overlaps
                if not self._is_publication_held:
                    self._is_publication_held = self.evaluations.hold_weights
                    live = self._publish_and_evaluate(step, group) if is_due and overlaps else self._publish()
                    publishing = group.create_task(live, name="publish")
                if self._is_colocated:
                    await publishing
                if not self._is_synchronous:
                    await self._keep(step, group)
                if is_due and not overlaps:
                    self._report()
                    await publishing
                    await self._begin_evaluation(step, group)

            if self.checkpointer is not None:
                await self.checkpointer.finish()

    async def _keep(self, step: int, group: asyncio.TaskGroup) -> None:
        """Take the checkpoint and the export that are due after a step, before the next one changes the weights."""
        checkpointer = self.checkpointer
        if checkpointer is None:
            return
        checkpointer.on_step_trained()
        if checkpointer.is_due(step):
            await checkpointer.begin(step, self.train_engine.version, group, self._report)
        if checkpointer.is_export_due(step):
            await checkpointer.export(step)

    async def _train_step(self, step: int) -> FinishedStep:
        """Take a step's groups part by part and train on them; meanwhile report the step before.

        The time of a step runs from the first part of the step before to its own first part: what its samples cost.
        """
        config, version, size = self.config, self.train_engine.version, self.config.groups_per_step
        groups: list[TrajectoryGroup] = []
        outcome: StepOutcome | None = None
        wait_seconds, num_taken = 0.0, 0
        while outcome is None:
            num_places = min(config.groups_per_part, size - num_taken)
            part, part_wait_seconds = await self._next_part(num_places)
            started = time.monotonic()
            wait_seconds += part_wait_seconds
            is_first, num_taken = num_taken == 0, num_taken + num_places
            is_last = num_taken == size
            training = self.thread.submit(self.policy_step.take, step, part, is_last)
            if is_first:
                self._report()
                totals = await self._busy_totals()
            groups += part
            outcome = await training
            self.reporter.add_span("training", f"step {step}", started, time.monotonic())
        num_samples = len(outcome.advantages)
        timing = self._clock.finish_step(totals, num_samples=num_samples, wait_seconds=wait_seconds)
        metrics = outcome.metrics | rollout_metrics(self.executor) | engine_metrics(self.engine)
        metrics |= self._update_seconds | timing | {"rollout/missing_groups": float(size - len(groups))}
        if self.checkpointer is not None:
            metrics |= self.checkpointer.metrics()
        if self.reward_models is not None:
            metrics |= self.reward_models.take_metrics()
        return FinishedStep(step, version, groups, outcome.advantages, metrics, outcome.note)

    async def _next_part(self, num_places: int) -> tuple[list[TrajectoryGroup], float]:
        """Wait for groups and let the reward models score them; also gives the seconds of waiting.

        What the filter rejects once the scores are there is replaced by further groups, scored in their turn, or leaves
        a hole, as what it rejected before: so many places hold fewer groups, or none.
        """
        version, wait_seconds = self.train_engine.version, 0.0
        part: list[TrajectoryGroup] = []
        redraws = self.executor.redraws
        num_places += redraws.num_holes
        while (missing := num_places - redraws.num_holes - len(part)) > 0:
            waiting_since = time.monotonic()
            if self.reward_models is None:
                part = await self.executor.next_groups(missing, missing, version)
            else:
                candidates = await self.executor.next_candidates(missing)
            wait_seconds += time.monotonic() - waiting_since
            if self._is_colocated:
                await self._put_engine_to_sleep()
            if self.reward_models is not None:
                scores = await self.reward_models.score(candidates) if candidates else []
                part += self.executor.settle_candidates(scores, version)
                if self._is_colocated and len(part) + redraws.num_holes < num_places:
                    await self.engine.wake_up()
        return part, wait_seconds

    async def _put_engine_to_sleep(self) -> None:
        """Give the shared device to the trainer; the weights of this step wake the engine."""
        started = time.monotonic()
        await self.engine.sleep()
        self.reporter.add_span("weights", "engine goes to sleep", started, time.monotonic())

    async def _begin_evaluation(self, step: int, group: asyncio.TaskGroup) -> None:
        """Evaluate the live weights while training goes on, or before it does."""
        before = await self._busy_totals()
        await self.evaluations.begin(step, self.train_engine.version, group)
        if self.evaluations.between_steps:
            self._clock.exclude(before, await self._busy_totals())

    async def _stage(self, version: int) -> None:
        started = time.monotonic()
        async with self._staging:
            await self.weight_sync.stage(version)
        self._update_seconds["perf/stage_seconds"] = time.monotonic() - started

    async def _publish(self) -> None:
        """Serve the staged weights, while the next step trains; then the places of the step before are free.

        While an evaluation measures what is live they wait, and newer ones may be staged in their place.
        """
        waiting_since = time.monotonic()
        await self.evaluations.weights_may_change()
        async with self._staging:
            self._is_publication_held = False
            version, started = self.train_engine.version, time.monotonic()
            await self.weight_sync.publish(version)
            ended = time.monotonic()
        self._update_seconds["perf/held_seconds"] = started - waiting_since
        self._update_seconds["perf/publish_seconds"] = ended - started
        self.reporter.add_span("weights", f"version {version}", started, ended)
        self.executor.on_published(version)

    async def _nothing_to_publish(self) -> None:
        """Stands where the publication of the step before the first would be."""

    @property
    def _evaluation_overlaps(self) -> bool:
        """Whether an evaluation of the next weights can begin once they are live, while the next step trains: not where
        roles take turns, nor while the one before it still measures others."""
        evaluations = self.evaluations
        return not (self._is_publication_held or evaluations.hold_weights or evaluations.between_steps)

    async def _publish_and_evaluate(self, step: int, group: asyncio.TaskGroup) -> None:
        """The next step trains meanwhile; its weights are not published before this has returned."""
        version = self.train_engine.version
        await self._publish()
        self._report()  # The step's own row comes before that of its evaluation, however long its successor waits.
        await self.evaluations.begin(step, version, group)

    async def _busy_totals(self) -> BusyTotals:
        generation = (await self.engine.health()).busy_seconds
        now = time.monotonic()
        return BusyTotals(now, generation, self.thread.busy_seconds(now))

    def _report(self) -> None:
        if self._unreported is not None:
            self.reporter.report(self._unreported)
            self._unreported = None
