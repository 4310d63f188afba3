"""What workflows and the executor see of a run's reward, be it one function or several with weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from areal_x.api.records import ModelResponse
from areal_x.api.reward_arguments import TRUNCATED
from areal_x.api.reward_records import RewardOutcome, RewardSample

__all__ = ["NoReward", "PendingScore", "Reward", "score_response"]


@dataclass(slots=True)
class PendingScore:
    """A sample that waits for the other samples of its group, with the scores that did not have to wait, by name."""

    sample: RewardSample
    outcomes: dict[str, RewardOutcome] = field(default_factory=dict)


class Reward(ABC):
    """A reward that can be awaited. ``outcome`` scores one sample; where the reward is one of whole groups
    (``is_group``) it only notes the sample, and ``finish_group`` scores all samples of a group together."""

    name: str
    is_group: bool = False
    score_truncated: bool = True
    """False: a completion that ended for its length is not scored (``not_applicable``)."""
    min_group_size: int = 1
    """Fewer samples of one prompt cannot be compared."""
    takes_truncated: bool = False
    """True: ``outcome`` takes ``truncated``, whether the completion ended for its length."""

    @abstractmethod
    async def outcome(
        self, prompt: str, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **data: Any
    ) -> RewardOutcome:
        """Score one completion; a failure is a typed record, too."""

    @abstractmethod
    async def finish_group(self, outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        """The final outcomes of ``pending`` ones, which are the samples of one complete group, in the same order."""

    @abstractmethod
    def check_columns(self, columns: Iterable[str], prompt_key: str | None = None) -> None:
        """Check the data's columns before a run starts; raises ``DataError``."""

    @abstractmethod
    async def start(self) -> None:
        """Make ready what the reward needs, before any deadline runs. Safe to call again."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what ``start`` took."""

    @abstractmethod
    def with_key(self, reward_key: str) -> Reward:
        """The same reward, with what it started, that takes its value from another key (evaluation)."""

    def metrics(self) -> dict[str, float]:
        """Running totals of the reward's own, such as calls, tokens or cost."""
        return {}


class NoReward(Reward):
    """No rule reward: reward models alone score, in the training loop. Each sample is worth 0 until then."""

    name = "none"

    def __init__(self, score_truncated: bool = True) -> None:
        self.score_truncated = score_truncated

    async def outcome(
        self, prompt: str, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **data: Any
    ) -> RewardOutcome:
        """0, whatever the completion is."""
        return RewardOutcome("ok", 0.0)

    async def finish_group(self, outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        """Nothing waits for its group."""
        return list(outcomes)

    def check_columns(self, columns: Iterable[str], prompt_key: str | None = None) -> None:
        """Any columns will do."""

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""

    def with_key(self, reward_key: str) -> Reward:
        """There is no other key."""
        return self


async def score_response(
    reward: Reward, response: ModelResponse, *, prompt: str, completion: str, columns: dict[str, Any]
) -> RewardOutcome:
    """Score what an engine sampled. An aborted completion is never scored, a truncated one where the reward wants it.

    Args:
        prompt: the rendered text; ``response.input_ids`` are its ids.
        completion: the text of ``response.output_ids``.
        columns: the data item without its prompt.
    """
    if response.stop_reason == "abort":
        return RewardOutcome("not_applicable", metadata={"reason": "aborted"})
    is_truncated = response.stop_reason == "length"
    if is_truncated and not reward.score_truncated:
        return RewardOutcome("not_applicable", metadata={"reason": "truncated"})
    if reward.takes_truncated:
        columns = columns | {TRUNCATED: is_truncated}
    outcome = await reward.outcome(
        prompt=prompt,
        completions=completion,
        prompt_ids=response.input_ids,
        completion_ids=response.output_ids,
        **columns,
    )
    if isinstance(outcome.pending, PendingScore):
        outcome.pending.sample.truncated = is_truncated
    return outcome
