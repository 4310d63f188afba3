"""The three ways to ask: one completion for a score, two against each other, or a whole group for an order."""

from __future__ import annotations

import hashlib
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from areal_x.api.errors import DataError
from areal_x.api.reward_records import RewardResult
from areal_x.reward.judge.call import JudgeCaller
from areal_x.reward.judge.parsing import ReplyParser, Scale, Verdict
from areal_x.reward.judge.prompts import JudgePrompt, numbered
from areal_x.reward.judge.ranking import RankingParser, rank_rewards
from areal_x.reward.judge.votes import Aggregate, ask_all, ask_votes, combine

__all__ = ["WINNERS", "Pairwise", "Ranking", "Single"]

WINNERS: dict[str, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}
"""What a comparison's verdict is worth to the answer that was shown first."""
_MAX_REASON = 2_000
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Voting:
    """How often each question is asked, and what becomes of the votes."""

    num_votes: int
    min_votes: int
    how: Aggregate


@dataclass(frozen=True, slots=True)
class Single:
    """Each completion gets a score of its own."""

    prompt: JudgePrompt
    parser: ReplyParser
    scale: Scale
    voting: Voting
    normalize: bool

    async def score(self, caller: JudgeCaller, values: Values) -> RewardResult:
        """The reward of ``values["completion"]``."""
        messages = self.prompt.messages(values)
        voting, parse = self.voting, self.parser.parse
        verdicts = await ask_votes(lambda index: caller.ask(messages, parse, index), voting.num_votes, voting.min_votes)
        scores = [verdict.value for verdict in verdicts]
        score = combine(scores, voting.how) if len(scores) > 1 else scores[0]
        parts = {"score": score}
        if voting.num_votes > 1:
            parts["agreement"] = max(scores.count(one) for one in scores) / len(scores)
        return RewardResult(self.scale.share(score) if self.normalize else score, parts, metadata=_reasons(verdicts))


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Each completion's share of wins against the others of its group, or against a reference.

    Each pair is asked in both orders, so that a judge that prefers the first one shown gives a tie.
    """

    prompt: JudgePrompt
    parser: ReplyParser
    voting: Voting
    reference: str | None

    async def score_group(self, caller: JudgeCaller, completions: Sequence[str], values: Values) -> list[Any]:
        """One reward for each completion; None where there is nothing to compare with."""
        if self.reference is not None:
            reference = values[self.reference]
            if not isinstance(reference, str):
                raise DataError(
                    f"column {self.reference!r} is no text: {reference!r}; a reference to compare with must be"
                )
            wins = await ask_all([self._compare(caller, text, reference, values) for text in completions])
            return [RewardResult(share, {"order_agreement": agreement}) for share, agreement in wins]
        if len(completions) < 2:
            return [None] * len(completions)
        pairs = [(i, j) for i in range(len(completions)) for j in range(i)]
        found = await ask_all([self._compare(caller, completions[i], completions[j], values) for i, j in pairs])
        shares: list[list[float]] = [[] for _ in completions]
        agreements: list[list[float]] = [[] for _ in completions]
        for (i, j), (share, agreement) in zip(pairs, found, strict=True):
            shares[i].append(share)
            shares[j].append(1.0 - share)
            agreements[i].append(agreement)
            agreements[j].append(agreement)
        return [
            RewardResult(statistics.fmean(share), {"order_agreement": statistics.fmean(agreement)})
            for share, agreement in zip(shares, agreements, strict=True)
        ]

    async def _compare(self, caller: JudgeCaller, one: str, other: str, values: Values) -> tuple[float, float]:
        """The share of wins of ``one``, and whether both orders say the same (1 or 0)."""
        if one == other:
            return 0.5, 1.0
        first, second = await ask_all(
            [self._ask(caller, one, other, values), self._ask(caller, other, one, values)],
        )
        return (first + 1.0 - second) / 2.0, float(first == 1.0 - second)

    async def _ask(self, caller: JudgeCaller, first: str, second: str, values: Values) -> float:
        messages = self.prompt.messages({**values, "completion_a": first, "completion_b": second})
        voting, parse = self.voting, self.parser.parse
        verdicts = await ask_votes(lambda index: caller.ask(messages, parse, index), voting.num_votes, voting.min_votes)
        return combine([verdict.value for verdict in verdicts], voting.how)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Each completion's rank among its group, from one reply: 1 for the best, 0 for the last.

    Each vote shows the completions in another order. Equal completions are shown once and share their rank.
    """

    prompt: JudgePrompt
    parser: RankingParser
    voting: Voting

    async def score_group(self, caller: JudgeCaller, completions: Sequence[str], values: Values) -> list[Any]:
        """One reward for each completion; None where there is nothing to compare with."""
        if len(completions) < 2:
            return [None] * len(completions)
        texts = list(dict.fromkeys(completions))
        if len(texts) == 1:
            return [RewardResult(0.5)] * len(completions)
        voting = self.voting
        votes = await ask_votes(
            lambda index: self._ask(caller, texts, values, index), voting.num_votes, voting.min_votes
        )
        reward_of = {text: combine([vote[k] for vote in votes], voting.how) for k, text in enumerate(texts)}
        return [RewardResult(reward_of[text]) for text in completions]

    async def _ask(self, caller: JudgeCaller, texts: list[str], values: Values, index: int) -> list[float]:
        # Made from the texts alone, so that a later run asks the same and finds the reply in its cache.
        seed = hashlib.sha256("\0".join([str(index), *texts]).encode("utf-8", "surrogatepass")).digest()
        order = random.Random(seed).sample(range(len(texts)), len(texts))
        messages = self.prompt.messages({**values, "completions": numbered([texts[k] for k in order])})
        ranking = await caller.ask(messages, lambda text: self.parser.parse(text, len(texts)), index)
        return rank_rewards(ranking, order)


def _reasons(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    reasons = [verdict.reason[:_MAX_REASON] for verdict in verdicts if verdict.reason]
    return {"judge_reason": reasons[0] if len(reasons) == 1 else reasons} if reasons else {}
