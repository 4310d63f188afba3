"""Accounts for episodes: how each ended, why, and when what happened."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from areal_x.api.errors import EngineDiedError, PromptTooLongError
from areal_x.api.reward_records import RewardError, RewardOutcome
from areal_x.rollout.counts import EpisodeCounts
from areal_x.rollout.episode import Episode, EpisodeEnd, EpisodeRecord
from areal_x.rollout.failure_budget import FailureBudget
from areal_x.rollout.groups import AssembledGroup, PendingGroup, check_trajectories

__all__ = ["EpisodeLedger", "PromptEnd"]


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """A group that will not be trained, and why. ``failed``: failures left too few good samples."""

    group_id: int
    end: Literal["rejected", "failed"]
    reason: str
    admitted_version: int


class EpisodeLedger:
    """Turns the ways in which episodes end into counts and records.

    Args:
        failures: says when there were too many.
        on_record: called once for each episode, when it reaches its end.
        on_span: called with (lane, start, end), in ``time.monotonic()`` seconds, when an episode has stopped running.
        on_prompt: called with each group that will not be trained.
    """

    def __init__(
        self,
        failures: FailureBudget,
        on_record: Callable[[EpisodeRecord], None] | None = None,
        on_span: Callable[[str, float, float], None] | None = None,
        on_prompt: Callable[[PromptEnd], None] | None = None,
    ) -> None:
        self.counts = EpisodeCounts()
        self._on_prompt = on_prompt
        self._failures = failures
        self._on_record = on_record
        self._on_span = on_span

    def account(self, episode: Episode, task: asyncio.Task[Any]) -> None:
        """The episode's boundary: every way in which a workflow can end becomes data here, and its siblings go on.

        Raises:
            FailureBudgetError: this failure was one too many.
            EngineDiedError: the engine is gone, which no other episode can survive either.
        """
        if task.cancelled():
            self.fail(episode, "CancelledError", "the workflow cancelled itself")
            return
        error = task.exception()
        if error is None:
            self._account_result(episode, task.result())
        elif isinstance(error, PromptTooLongError):
            self.close(episode, "rejected", "prompt_too_long")
        else:
            text = "".join(traceback.format_exception(error)).rstrip()
            self._count_failure(episode, type(error).__name__, text)
            if isinstance(error, EngineDiedError) or not isinstance(error, Exception):
                raise error
            if isinstance(error, RewardError):
                self.counts.scores[type(error).__name__] += 1
                self._failures.on_score(text)
            self._failures.on_episode(text)
        if self._on_span is not None:
            self._emit_spans(episode)

    def fail(self, episode: Episode, reason: str, text: str) -> None:
        """An episode failed for ``reason``; raises ``FailureBudgetError`` if it was one too many."""
        self._count_failure(episode, reason, text)
        self._failures.on_episode(text)

    def time_out(self, episode: Episode, seconds: float) -> None:
        """An episode ran longer than ``seconds``; raises as ``fail``."""
        text = f"episode {episode.episode_id} took too long; see rollout.episode_timeout_seconds={seconds:g}"
        self.fail(episode, "episode_timeout", text)

    def close(self, episode: Episode, end: EpisodeEnd, reason: str | None = None) -> None:
        """The episode reached its one end."""
        if episode.end is not None:
            raise AssertionError(f"episode {episode.episode_id} ended twice: {episode.end}, then {end}")
        episode.end, episode.reason = end, reason
        counts = self.counts
        if end == "trained":
            counts.trained += 1
        elif end == "rejected":
            counts.rejected[reason or "rejected"] += 1
        elif end == "failed":
            counts.failed[reason or "failed"] += 1
        else:
            counts.cancelled += 1
        if self._on_record is not None:
            self._on_record(_record(episode, end, reason))
        # The group, if there is one, has them; a hung workflow may keep this object alive for long.
        episode.trajectories = None

    def close_all(self, episodes: Iterable[Episode], end: EpisodeEnd, reason: str | None = None) -> None:
        """Several episodes reached the same end."""
        for episode in episodes:
            self.close(episode, end, reason)

    def reject_group(self, pending: PendingGroup, assembled: AssembledGroup, reason: str | None) -> None:
        """A complete group will not be trained, for ``reason``."""
        self.close_assembled(assembled)
        self.close_all(assembled.kept, "rejected", reason)
        if self._on_prompt is not None:
            self._on_prompt(_prompt_end(pending, assembled, reason or "rejected"))

    def close_assembled(self, assembled: AssembledGroup) -> None:
        """Account for the episodes of a complete group that will not be trained."""
        for episode, reason in assembled.failed:
            self.close(episode, "failed", reason)
        for episode, reason in assembled.rejected:
            self.close(episode, "rejected", reason)

    def _account_result(self, episode: Episode, result: Any) -> None:
        if result is None:
            self._failures.on_episode(None)
            self.close(episode, "rejected", "workflow")
            return
        try:
            episode.trajectories = check_trajectories(result)
        except TypeError as error:
            self.fail(episode, "TypeError", str(error))
            return
        self._failures.on_episode(None)
        for trajectory in episode.trajectories:
            self._account_score(trajectory.outcome)

    def account_scores(self, outcomes: Iterable[RewardOutcome]) -> None:
        """Count scores that came apart from their episodes; raises ``FailureBudgetError`` if one was too many."""
        for outcome in outcomes:
            self._account_score(outcome)

    def account_group_scores(self, outcomes: Sequence[RewardOutcome]) -> None:
        """The samples of a complete group were scored together.

        Raises:
            FailureBudgetError: a failure was one too many.
        """
        self.account_scores(outcomes)
        if self._on_span is not None and outcomes and outcomes[0].started_at:
            self._on_span("scoring", outcomes[0].started_at, outcomes[0].started_at + outcomes[0].seconds)

    def _account_score(self, outcome: RewardOutcome | None) -> None:
        if outcome is None or outcome.status == "pending":
            return
        self.counts.scores[outcome.status] += 1
        if outcome.status in ("ok", "not_applicable"):
            self._failures.on_score(None)
            return
        text = outcome.error or outcome.status
        self.counts.first_tracebacks.setdefault(f"reward_{outcome.status}", text)
        self._failures.on_score(text)

    def _count_failure(self, episode: Episode, reason: str, text: str) -> None:
        self.counts.first_tracebacks.setdefault(reason, text)
        self.close(episode, "failed", reason)

    def _emit_spans(self, episode: Episode) -> None:
        assert self._on_span is not None
        on_span = self._on_span
        on_span("episode", episode.started_at, episode.finished_at)
        for start, end in episode.generations:
            on_span("generation", start, end)
        scoring = _scoring(episode)
        if scoring is not None:
            on_span("scoring", *scoring)


def _prompt_end(pending: PendingGroup, assembled: AssembledGroup, reason: str) -> PromptEnd:
    """The fate of a group; one that became too small has the commonest reason of its episodes."""
    group_id, version = pending.group_id, pending.admitted_version
    if assembled.group is not None:
        return PromptEnd(group_id, "rejected", reason, version)
    ends = Counter((e.end, e.reason) for e in pending.episodes if e.end in ("failed", "rejected") and e.reason)
    failed = Counter({why: count for (end, why), count in ends.items() if end == "failed" and why})
    if failed:
        return PromptEnd(group_id, "failed", failed.most_common(1)[0][0], version)
    own = Counter({why: count for (_, why), count in ends.items() if why and why != reason})
    return PromptEnd(group_id, "rejected", own.most_common(1)[0][0] if own else reason, version)


def _scoring(episode: Episode) -> tuple[float, float] | None:
    if not episode.trajectories:
        return None
    outcome = episode.trajectories[-1].outcome
    if outcome is None or not outcome.started_at:
        return None
    return (outcome.started_at, outcome.started_at + outcome.seconds)


def _record(episode: Episode, end: EpisodeEnd, reason: str | None) -> EpisodeRecord:
    return EpisodeRecord(
        episode_id=episode.episode_id,
        group_id=episode.group.group_id,
        end=end,
        reason=reason,
        started_at=episode.started_at,
        finished_at=episode.finished_at,
        generations=tuple(episode.generations),
        scoring=_scoring(episode),
    )
