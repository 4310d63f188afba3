"""Several rewards with weights as one reward, each logged by its name."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from areal_x.api.errors import ConfigError
from areal_x.api.reward_arguments import TRUNCATED
from areal_x.api.reward_base import PendingScore, Reward
from areal_x.api.reward_records import DEFAULT_REWARD_KEY, LARGEST_REWARD, RewardOutcome, RewardSample

__all__ = ["RewardSet", "WeightedReward"]


Result = TypeVar("Result")


async def _all(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of all calls, side by side; what one raises cancels the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """One reward of several."""

    name: str
    reward: Reward
    weight: float = 1.0


@dataclass(slots=True)
class _Sum:
    """The weighted sum of outcomes under way."""

    value: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    token_rewards: list[float] | None = None

    def add(self, member: WeightedReward, outcome: RewardOutcome) -> None:
        assert outcome.value is not None
        self.value += member.weight * outcome.value
        self.values[member.name] = self.parts[member.name] = outcome.value
        for part, value in outcome.parts.items():
            self.parts.setdefault(f"{member.name}/{part}", value)
        for key, value in outcome.metadata.items():
            if key == "reason":
                self.metadata[key] = f"{self.metadata[key]}+{value}" if key in self.metadata else value
            else:
                self.metadata[f"{member.name}/{key}"] = value

    def add_tokens(self, member: WeightedReward, outcome: RewardOutcome, length: int) -> None:
        """A reward of the whole completion stands at its last token."""
        tokens = outcome.token_rewards or [*([0.0] * (length - 1)), outcome.value or 0.0]
        before = self.token_rewards or [0.0] * length
        self.token_rewards = [a + member.weight * b for a, b in zip(before, tokens, strict=True)]


class RewardSet(Reward):
    """The weighted sum of several rewards, scored side by side.

    A reward that does not apply to a sample is left out of its sum; if none applies, the whole does not. If one
    failed, the whole failed: a sum without it would be another reward. ``parts`` hold each reward's own value by its
    name and its parts as ``<name>/<part>``; ``values`` the values alone. A per-token reward keeps its tokens: the
    others stand at the last token. (``step_rewards`` of several rewards have no common steps and are left out.)

    Args:
        members: the rewards, with distinct names.

    Raises:
        ConfigError: no reward, two of one name, or a weight that is no finite number.
    """

    def __init__(self, members: Sequence[WeightedReward], reward_key: str = DEFAULT_REWARD_KEY) -> None:
        names = [member.name for member in members]
        if not names:
            raise ConfigError("a set of rewards needs at least one")
        for member in members:
            if names.count(member.name) > 1:
                raise ConfigError(f"two rewards are called {member.name!r}; give each its own name")
            if not math.isfinite(member.weight):
                raise ConfigError(f"reward.rewards.{member.name}.weight={member.weight} must be a finite number")
        self.members = tuple(members)
        self.name = "+".join(names)
        self.reward_key = reward_key
        self.is_group = any(member.reward.is_group for member in members)
        self.min_group_size = max(member.reward.min_group_size for member in members)
        self.takes_truncated = any(member.reward.takes_truncated for member in members)
        self.score_truncated = all(member.reward.score_truncated for member in members)

    async def outcome(
        self, prompt: str, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **data: Any
    ) -> RewardOutcome:
        """Score one completion with every reward of single samples; those of groups wait for the others."""
        arguments = (prompt, completions, prompt_ids, completion_ids)
        columns = {name: value for name, value in data.items() if name != TRUNCATED} if self.takes_truncated else data
        scored = await _all(
            member.reward.outcome(*arguments, **(data if member.reward.takes_truncated else columns))
            for member in self.members
        )
        outcomes = {member.name: outcome for member, outcome in zip(self.members, scored, strict=True)}
        waiting = [outcome.pending for outcome in scored if isinstance(outcome.pending, PendingScore)]
        if waiting:
            return RewardOutcome("pending", pending=PendingScore(waiting[0].sample, outcomes))
        return self._combine(outcomes)

    async def finish_group(self, outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        """See ``Reward.finish_group``."""
        waiting: list[PendingScore] = [outcome.pending for outcome in outcomes]
        samples = [pending.sample for pending in waiting]
        finished = await _all(self._finish(member, samples) for member in self.members)
        for member, results in zip(self.members, finished, strict=True):
            for pending, result in zip(waiting, results, strict=False):
                pending.outcomes[member.name] = result
        return [self._combine(pending.outcomes) for pending in waiting]

    async def _finish(self, member: WeightedReward, samples: list[RewardSample]) -> list[RewardOutcome]:
        if not member.reward.is_group:
            return []
        return await member.reward.finish_group(
            [RewardOutcome("pending", pending=PendingScore(sample)) for sample in samples]
        )

    def _combine(self, outcomes: Mapping[str, RewardOutcome]) -> RewardOutcome:
        seconds = max(outcome.seconds for outcome in outcomes.values())
        started_at = min((o.started_at for o in outcomes.values() if o.started_at), default=0.0)
        for name, outcome in outcomes.items():
            if outcome.status not in ("ok", "not_applicable"):
                error = f"reward {name!r}: {outcome.error}"
                return RewardOutcome(outcome.status, seconds=seconds, started_at=started_at, error=error)
        applied = [member for member in self.members if outcomes[member.name].status == "ok"]
        if not applied:
            return RewardOutcome("not_applicable", seconds=seconds, started_at=started_at)
        total = _Sum()
        for member in applied:
            total.add(member, outcomes[member.name])
        token_rewards = [outcomes[member.name].token_rewards for member in applied]
        lengths = [len(tokens) for tokens in token_rewards if tokens]
        if len(set(lengths)) > 1:
            error = f"the token rewards of {self.name} differ in length: {lengths}"
            return RewardOutcome("error", seconds=seconds, started_at=started_at, error=error)
        for member in applied if lengths else ():
            total.add_tokens(member, outcomes[member.name], lengths[0])
        if not abs(total.value) <= LARGEST_REWARD:
            error = f"the weighted sum of the rewards {self.name} is {total.value}, which is no finite number (float32)"
            return RewardOutcome("error", seconds=seconds, started_at=started_at, error=error)
        combined = RewardOutcome("ok", total.value, total.parts, total.metadata, seconds, started_at)
        combined.values, combined.token_rewards = total.values, total.token_rewards
        return self._under_key(combined)

    def _under_key(self, outcome: RewardOutcome) -> RewardOutcome:
        if self.reward_key == DEFAULT_REWARD_KEY:
            return outcome
        if self.reward_key not in outcome.parts:
            known = ", ".join(sorted(outcome.parts))
            return RewardOutcome("error", error=f"no reward or part is called {self.reward_key!r}; there are: {known}")
        outcome.value = outcome.parts[self.reward_key]
        return outcome

    def check_columns(self, columns: Iterable[str], prompt_key: str | None = None) -> None:
        """See ``Reward.check_columns``."""
        names = frozenset(columns)
        for member in self.members:
            member.reward.check_columns(names, prompt_key)

    async def start(self) -> None:
        """Start every reward."""
        for member in self.members:
            await member.reward.start()

    async def close(self) -> None:
        """Close every reward, also when one of them fails to; the first failure is raised."""
        results = await asyncio.gather(*(member.reward.close() for member in self.members), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def with_key(self, reward_key: str) -> RewardSet:
        """See ``Reward.with_key``; the key is a reward's name, or ``<name>/<part>``."""
        return RewardSet(self.members, reward_key)

    def metrics(self) -> dict[str, float]:
        """Each reward's own totals, as ``<name>/<total>``."""
        return {
            f"{member.name}/{key}": value for member in self.members for key, value in member.reward.metrics().items()
        }
