"""The rollout executor: items → episodes → groups → train steps.

    items ──▶ admission ──▶ group_size episodes ──▶ complete group ──▶ filter ──▶ ready ──▶ next_batch / next_groups
                 ▲                                    │ too small, rejected          │
                 └──────── places come back ──────────┘          on_published ◀── trainer

Everything happens on one event loop, in callbacks; nothing polls.

* **Admission** (``_tick``) consumes items. It waits for a place: the staleness budget, an engine slot or its queue, and
  not too many ready groups. It is unblocked by the end of a request, an episode or a group, by ``next_*`` and
  ``on_published``. It produces tasks, one for each episode.
* **Settling** (``_settle``) consumes finished tasks and produces ready groups; where the reward is one of whole groups,
  once they are scored.
* **Consumption** (``next_batch``, ``next_groups``) takes the ready groups, the oldest first, and masks the tokens
  that are too old. It waits for enough of them, and is unblocked by settling or by whatever ends the run.

Why the oldest group first: a long sample is near the bound, and loses tokens with each step that it waits. Why few
ready groups (``max_ready_groups``): what waits, ages. Why a queue at the engine: what waits there has no tokens yet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from areal_x.api.config import RolloutConfig
from areal_x.api.engine_api import Generator, InferenceEngine
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_records import RewardOutcome
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.rollout.counts import EpisodeCounts
from areal_x.rollout.deadlines import EpisodeDeadlines
from areal_x.rollout.episode import EngineTraffic, Episode, EpisodeGenerator, EpisodeRecord
from areal_x.rollout.failure_budget import FailureBudget
from areal_x.rollout.finish_group import GroupFinisher, GroupHooks, is_waiting
from areal_x.rollout.group_source import GroupSource
from areal_x.rollout.groups import FailurePolicy, PendingGroup
from areal_x.rollout.ledger import EpisodeLedger, PromptEnd
from areal_x.rollout.lockstep import Lockstep, LockstepGenerator
from areal_x.rollout.parts import ReadyLimit
from areal_x.rollout.redraws import Redraws
from areal_x.rollout.rollout_state import RolloutSnapshot, RolloutState
from areal_x.rollout.staleness import StalenessBudget

__all__ = ["RolloutExecutor"]

_STOP_SECONDS = 3.0
_MAX_REJECTED_STEPS, _MIN_REJECTED_GROUPS = 16, 256


class RolloutExecutor(GroupSource):
    """Keeps episodes in flight under the staleness bound and hands complete groups to the trainer.

    Args:
        engine, workflow: run one episode; the engine is started.
        items: the data, one mapping of columns for each group.
        config: group size, bound, slots, deadlines and failure limits.
        groups_per_step: groups of one train step.
        on_failure: what a failed score means: ``drop``, ``mask``, ``raise`` or a number.
        seed: seeds requests in a synchronous run.
        hooks: what is done to a complete group.
        max_failure_rate, failure_window: see ``FailureBudget``.
        max_ready_groups: admission slows down when about so many groups wait for the trainer; see ``ReadyLimit``.
            Default: a step and a quarter, for a trainer that takes whole batches.
        min_samples: a group with fewer good samples is rejected. Default: two, or one when ``group_size`` is one.
        bounded: false admits items without a staleness bound (evaluation).
        lockstep: send requests in rounds, so that runs repeat bitwise. Default: when ``max_staleness`` is 0.
        version: publications before this run.
        start: where an earlier run stopped; ``items`` then begin with the first one that it had not drawn.
        on_group, on_record: called with each group as it becomes ready, each episode's record as it ends.
        on_prompt: called with each group that will not be trained, when that is settled.
        on_span: called with (lane, start, end), ``time.monotonic()`` seconds, for each episode, generation and scoring.
    """

    def __init__(
        self,
        *,
        engine: InferenceEngine,
        workflow: RolloutWorkflow,
        items: Iterator[Mapping[str, Any]],
        config: RolloutConfig,
        groups_per_step: int,
        on_failure: str | float = "drop",
        seed: int = 0,
        hooks: GroupHooks | None = None,
        max_failure_rate: float = 0.5,
        failure_window: int = 256,
        max_ready_groups: int | None = None,
        min_samples: int | None = None,
        bounded: bool = True,
        lockstep: bool | None = None,
        version: int = 0,
        start: RolloutState | None = None,
        on_group: Callable[[TrajectoryGroup], None] | None = None,
        on_record: Callable[[EpisodeRecord], None] | None = None,
        on_prompt: Callable[[PromptEnd], None] | None = None,
        on_span: Callable[[str, float, float], None] | None = None,
    ) -> None:
        max_staleness = config.max_staleness if bounded else None
        budget = StalenessBudget(groups_per_step, config.group_size, max_staleness, config.max_concurrent, version)
        max_rejected = max(_MIN_REJECTED_GROUPS, _MAX_REJECTED_STEPS * groups_per_step)
        failures = FailureBudget(config.max_failures_in_a_row, max_failure_rate, failure_window, max_rejected)
        self._workflow = workflow
        self._items = items
        min_samples = min_samples if min_samples is not None else min(2, config.group_size)
        policy = FailurePolicy.parse(on_failure)
        seconds = config.episode_timeout_seconds
        self._finisher = GroupFinisher(policy, min_samples, hooks or GroupHooks(), seconds, self._on_group_scored)
        ledger, limit = (
            EpisodeLedger(failures, on_record, on_span, on_prompt),
            ReadyLimit(max_ready_groups, groups_per_step),
        )
        redraws = Redraws(config.max_redraws if bounded else None, groups_per_step)
        super().__init__(budget, failures, ledger, self._finisher, limit, redraws)
        self._on_group = on_group
        queue = config.num_slots if max_ready_groups is None else max(config.group_size, config.num_slots // 4)
        self._max_requests = config.num_slots + queue
        self._traffic = EngineTraffic(engine, self._schedule_tick)
        use_lockstep = max_staleness == 0 if lockstep is None else lockstep
        self._lockstep = Lockstep(engine, seed, self._schedule_tick) if use_lockstep else None
        self._deadlines = EpisodeDeadlines(config.episode_timeout_seconds, self._on_due)
        self._episodes: dict[asyncio.Task[Any], Episode] = {}
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._open_groups: dict[int, PendingGroup] = {}
        self._num_fresh = 0
        self._items_ended = self._tick_scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._stopped = False
        self._restarting: list[PendingGroup] = []
        if start is not None:
            self._go_on_from(start)

    # ---- what the trainer calls -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until ``stop``. When it returns or raises, every episode has had its end.

        Raises:
            FailureBudgetError: too many episodes or scores failed.
            EngineDiedError: the engine is gone.
            RewardError: a score failed and ``on_failure`` is ``raise``.
            Exception: whatever the item stream or the filter raised.
        """
        if self._loop is not None:
            raise RuntimeError("an executor runs once; make a new one")
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        if self._stopped:
            self._ended.set_result(None)
        self._schedule_tick()
        try:
            await self._ended
        finally:
            self._end_run(self._error)
            await self._shut_down()
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """End ``run``: cancel what is in flight and count it."""
        self._end_run(None)
        await self._shut_down()

    def on_published(self, version: int) -> None:
        """Weights of ``version`` are live in the engine: the places of the step before are free."""
        self.budget.on_published(version)
        self._schedule_tick()

    def snapshot(self) -> RolloutSnapshot:
        """A copy of all that a run needs to go on from here. Between two steps, when the trainer holds no groups."""
        if self._verdicts.num_held_episodes:
            raise RuntimeError("the trainer holds groups, which no snapshot could keep")
        state = RolloutState(
            next_group_id=self._next_group_id,
            num_accepted_groups=self.budget.num_accepted_groups,
            num_redraws=self.redraws.num_used,
            counts=self.counts,
            open_groups=list(self._open_groups.values()),
            ready=self._ready.groups,
            holes=self._ready.holes,
        )
        return RolloutSnapshot.of(state)

    @property
    def counts(self) -> EpisodeCounts:
        """Episodes by how they ended."""
        return self._ledger.counts

    @property
    def num_ready_groups(self) -> int:
        """Groups, and holes in their place, that wait for the trainer."""
        return len(self._ready)

    @property
    def num_running_episodes(self) -> int:
        """Episodes that run now, or wait for the score of their group."""
        return self.budget.num_running_episodes

    def check_conservation(self) -> None:
        """Compare the books with the episodes that are there; raises ``AssertionError`` when one was lost."""
        num_open = sum(episode.end is None for group in self._open_groups.values() for episode in group.episodes)
        self.counts.check(num_open + self._ready.num_episodes + self._verdicts.num_held_episodes)

    # ---- admission --------------------------------------------------------------------------------------------------

    def _schedule_tick(self) -> None:
        if not self._tick_scheduled and self._loop is not None:
            self._tick_scheduled = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        """Admit what may be admitted, then serve those who wait: once for all events of a pass of the loop."""
        self._tick_scheduled = False
        if self._stopped:
            return
        # Tasks made by the last tick have had their first step: if they want the engine, its traffic counts them now.
        self._num_fresh = 0
        try:
            while self._restarting:
                self._start_episodes(self._restarting.pop(0))
            while self._may_admit():
                item = next(self._items, None)
                if item is None:
                    self._items_ended = True
                    break
                self._start_group(dict(item))
        except Exception as error:  # the producer's boundary: a broken item stream ends the run with its own error
            self._end_run(error)
            return
        if self._num_fresh:
            self._schedule_tick()
        if self._lockstep is not None and not self._finisher.tasks:
            self._lockstep.send_round_if_complete()
        self._ready.wake()

    def _may_admit(self) -> bool:
        if self._items_ended or self.budget.num_admissible < 1:
            return False
        if self._lockstep is not None:
            return True
        max_requests = self._max_requests * self._ready_limit.share(len(self._ready) - self._ready.num_wanted)
        return self._traffic.num_requests + self._num_fresh < max_requests

    def _start_group(self, item: dict[str, Any]) -> None:
        self.budget.admit()
        size = self.budget.group_size
        pending = PendingGroup(self._next_group_id, item, self.budget.version, size)
        pending.episodes = [Episode(pending, index, 0.0) for index in range(size)]
        self._next_group_id += 1
        self._open_groups[pending.group_id] = pending
        self.counts.submitted += size
        self._start_episodes(pending)

    def _start_episodes(self, pending: PendingGroup) -> None:
        """Run all episodes of a group, but for those of which an earlier run has left something."""
        assert self._loop is not None
        now = time.monotonic()
        for episode in pending.episodes:
            if not episode.runs_again:
                continue
            self._num_fresh += 1
            episode.started_at = now
            generator: Generator
            if self._lockstep is None:
                generator = EpisodeGenerator(self._traffic, episode)
            else:
                generator = LockstepGenerator(self._lockstep, episode)
                self._lockstep.on_episode_started()
            task = self._loop.create_task(self._workflow.arun_episode(generator, dict(pending.item)))
            episode.task = task
            self._episodes[task] = episode
            task.add_done_callback(self._on_task_done)
            self._deadlines.add(episode, now)
        if not pending.num_open:  # It had just been scored as a group when the earlier run stopped.
            self._complete_group(pending)

    def _go_on_from(self, start: RolloutState) -> None:
        """Take over what an earlier run held; its open groups start with the first tick."""
        self._next_group_id = start.next_group_id
        self._ledger.counts = start.counts
        self._open_groups = {pending.group_id: pending for pending in start.open_groups}
        self._restarting = list(start.open_groups)
        num_episodes = sum(pending.num_open for pending in start.open_groups)
        self.budget.go_on_from(start.num_accepted_groups, len(start.open_groups), num_episodes)
        self.redraws.num_used = start.num_redraws
        for ready in start.ready:
            self._ready.put(ready)
        for group_id in start.holes:
            self._ready.put_hole(group_id)

    # ---- settling ---------------------------------------------------------------------------------------------------

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        episode = self._episodes.pop(task, None)
        if episode is not None:
            self._settle(episode, task)
            return
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # after its deadline nobody asks; without this the loop would print it

    def _on_due(self, episode: Episode) -> None:
        """The episode's time is over. The books do not wait for a workflow that holds on to its cancellation."""
        task = episode.task
        assert task is not None
        if self._lockstep is not None and self._lockstep.is_waiting(episode):
            # It waits for a sibling, which has a deadline of its own. Only its own work counts.
            self._deadlines.add(episode, time.monotonic())
            return
        del self._episodes[task]
        self._abandoned.add(task)
        task.cancel()
        self._settle(episode, None)

    def _settle(self, episode: Episode, task: asyncio.Task[Any] | None) -> None:
        """An episode runs no longer: account for it, and for its group if it was the last. No task: its time is up."""
        episode.finished_at, episode.task = time.monotonic(), None
        self._deadlines.remove(episode)
        if self._lockstep is not None:
            self._lockstep.on_episode_ended(episode)
        pending = episode.group
        pending.num_open -= 1
        if self._stopped:
            if task is not None and not task.cancelled():
                task.exception()  # the run has its error; what its cancelled episodes raise is not another
            return
        try:
            if task is not None:
                self._ledger.account(episode, task)
            else:
                self._ledger.time_out(episode, self._deadlines.seconds)
            self.budget.on_episodes_ended(pending.free_places(is_waiting(episode)))
            if pending.num_open == 0 and not self._finisher.start_scoring(pending):
                self._complete_group(pending)
        except BaseException as error:  # the run's boundary: a spent failure budget, a dead engine, a broken filter
            self._end_run(error)
        self._schedule_tick()

    def _on_group_scored(self, pending: PendingGroup, task: asyncio.Task[list[RewardOutcome]]) -> None:
        if self._stopped:
            _ = task.cancelled() or task.exception()  # the run has its error already
            return
        try:
            self._ledger.account_group_scores(task.result())
            self._complete_group(pending)
        except BaseException as error:  # the run's boundary, as for an episode
            self._end_run(error)
        self._schedule_tick()

    def _complete_group(self, pending: PendingGroup) -> None:
        self.budget.on_episodes_ended(pending.num_waiting)
        ready = self._verdicts.on_complete(pending)
        del self._open_groups[pending.group_id]
        if ready is True:
            self._ready.put_hole(pending.group_id)
        elif ready:
            self._ready.put(ready)
            if self._on_group is not None:
                self._on_group(ready.group)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _nothing_comes(self) -> bool:
        return self._stopped or (self._items_ended and not self._open_groups)

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise self._error
        if self._stopped:
            raise RuntimeError("the rollout executor was stopped")

    def _end_run(self, error: BaseException | None) -> None:
        if self._stopped:
            return
        self._error = error
        self._stopped = True
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        self._ready.wake()

    async def _shut_down(self) -> None:
        """Cancel every task, wait for them, and give what is left its end. Safe to call twice."""
        self._deadlines.stop()
        tasks = [*self._episodes, *self._abandoned, *self._finisher.tasks]
        for task in tasks:
            task.cancel()
        if self._lockstep is not None:
            await self._lockstep.stop()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        unfinished = [e for group in self._open_groups.values() for e in group.episodes if e.end is None]
        untrained = [episode for ready in self._ready.take(len(self._ready))[0] for episode in ready.kept]
        self._open_groups.clear()
        self._ledger.close_all([*unfinished, *untrained, *self._verdicts.give_up()], "cancelled")
