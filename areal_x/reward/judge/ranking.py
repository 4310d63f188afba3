"""Ranks of a whole group from one reply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from areal_x.reward.judge.errors import JudgeReplyError, excerpt
from areal_x.reward.judge.json_reply import final_json
from areal_x.reward.judge.parsing import last_line

__all__ = ["RankingParser", "rank_rewards"]

_LINE = re.compile(r"(?:(?:final\s+)?ranking\s*[:=]\s*)?((?:\[?[0-9]{1,4}\]?\s*(?:[>,]\s*)?)+)\.?", re.IGNORECASE)
_KEY = "ranking"


@dataclass(frozen=True, slots=True)
class RankingParser:
    """A permutation of 1..n, best first: ``{"ranking": [2, 1, 3]}``, or ``Ranking: 2 > 1 > 3`` in the last line."""

    is_json: bool

    @property
    def instruction(self) -> str:
        """What the prompt says about the form of the reply."""
        if self.is_json:
            return (
                'Answer with one JSON object and nothing else: "reason" is a sentence or two, then "ranking" is the '
                "list of all the numbers of the responses, the best first."
            )
        return 'End with a line that reads "Ranking: A > B > C", with the numbers of all responses, the best first.'

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the reply, where it is JSON."""
        if not self.is_json:
            return None
        ranking = {"type": "array", "items": {"type": "integer"}}
        properties = {"reason": {"type": "string"}, _KEY: ranking}
        return {
            "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
        }  # fmt: skip

    def parse(self, text: str, num_responses: int) -> list[int]:
        """The numbers 1..``num_responses``, best first.

        Raises:
            JudgeReplyError: there is no ranking, or it is no permutation of them.
        """
        if self.is_json:
            ranking = final_json(text, _KEY)[_KEY]
        else:
            line = last_line(text)
            match = _LINE.fullmatch(line) if len(line) < 10 * num_responses + 40 else None
            if match is None:
                raise JudgeReplyError(f'the reply does not end with "Ranking: A > B > ...": {excerpt(text)}')
            ranking = [int(number) for number in re.findall(r"[0-9]+", match.group(1))]
        is_list = isinstance(ranking, list) and all(type(number) is int for number in ranking)
        if not is_list or sorted(ranking) != list(range(1, num_responses + 1)):
            raise JudgeReplyError(f"the ranking {ranking!r} is no permutation of 1 to {num_responses}: {excerpt(text)}")
        return list(ranking)


def rank_rewards(ranking: Sequence[int], order: Sequence[int]) -> list[float]:
    """Rewards by rank, 1 for the best down to 0 for the last, evenly spaced.

    Args:
        ranking: numbers 1..n as shown to the judge, best first.
        order: for each number its sample's index (number ``i`` showed sample ``order[i - 1]``).

    Returns:
        One reward for each sample, in the order of the samples. n is 2 at least.
    """
    rewards = [0.0] * len(order)
    for rank, number in enumerate(ranking):
        rewards[order[number - 1]] = (len(order) - 1 - rank) / (len(order) - 1)
    return rewards
