"""How good several samples of one prompt are together: pass@k and majority@k, both exact, as pure functions.

A prompt has n samples. What k of them would do is the mean over all subsets of size k, which both functions count
without drawing any.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import comb

from areal_x.api.reward_records import RewardOutcome

__all__ = ["ANSWERS", "RIGHT", "majority_at_k", "pass_at_k", "stated_answer", "votes_of"]

ANSWERS = ("answer", "pred")
"""Keys of an outcome's ``metadata`` with the text that the reward took for the answer."""
RIGHT = "right"
"""The vote of every right sample."""

_LONGEST_NUMBER = 28
_ENDS = re.compile(r"^[\s$]+|[\s$.]+$")
_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Probability that at least one of ``k`` samples, drawn from ``num_samples`` without replacement, is right.

    ``1 - C(n - c, k) / C(n, k)``: the unbiased estimator of Chen et al., https://arxiv.org/abs/2107.03374, equation 1.

    Raises:
        ValueError: there are no ``k`` samples, or more right ones than samples.
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"pass@{k} of {num_right} right ones among {num_samples} samples is not defined")
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_at_k(votes: Sequence[str | None], k: int) -> float:
    """Probability that the most frequent answer of ``k`` samples, drawn without replacement, is right.

    Self-consistency (Wang et al., https://arxiv.org/abs/2203.11171) with every subset of size ``k`` counted. Answers
    with equally many votes share the probability; samples without an answer do not vote; where nobody votes, nothing
    is right.

    Args:
        votes: one for each sample: ``RIGHT``, another answer, or ``None`` for no answer.

    Raises:
        ValueError: there are no ``k`` samples.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"majority@{k} of {len(votes)} samples is not defined")
    counts = Counter(vote for vote in votes if vote is not None)
    num_right = counts.pop(RIGHT, 0)
    return _majority(num_right, tuple(sorted(counts.values())), len(votes), k)


@functools.lru_cache(maxsize=4096)
def _majority(num_right: int, num_wrong: tuple[int, ...], num_samples: int, k: int) -> float:
    """As ``majority_at_k``, of so many right votes and so many for each wrong answer.

    Sum over v, the votes of the right answer in the subset: ways to choose them, times the ways in which no other
    answer has more than v, each divided by 1 + the number of answers that tie.
    """
    num_silent = num_samples - num_right - sum(num_wrong)
    total = 0.0
    for votes in range(1, min(num_right, k) + 1):
        ways = {(chosen, 0): comb(num_silent, chosen) for chosen in range(min(num_silent, k - votes) + 1)}
        for count in num_wrong:
            ways = _with_answer(ways, count, votes, k - votes)
        winning = sum(number / (1 + ties) for (chosen, ties), number in ways.items() if chosen == k - votes)
        total += comb(num_right, votes) * winning
    return total / comb(num_samples, k)


def _with_answer(
    ways: Mapping[tuple[int, int], int], count: int, most_votes: int, most_chosen: int
) -> dict[tuple[int, int], int]:
    """Ways to choose (samples, ties), once an answer of ``count`` samples may have up to ``most_votes`` of them."""
    extended: Counter[tuple[int, int]] = Counter()
    for (chosen, ties), number in ways.items():
        for votes in range(min(count, most_votes, most_chosen - chosen) + 1):
            extended[chosen + votes, ties + (votes == most_votes)] += number * comb(count, votes)
    return dict(extended)


def votes_of(outcomes: Sequence[RewardOutcome], is_right: Sequence[bool]) -> list[str | None]:
    """The vote of each scored sample of one prompt.

    Right samples vote alike, however they write the answer: the reward has found each equal to the gold one. Wrong ones
    vote alike where their answers have the same normalised text.
    """
    return [RIGHT if right else stated_answer(outcome) for outcome, right in zip(outcomes, is_right, strict=True)]


def stated_answer(outcome: RewardOutcome) -> str | None:
    """The normalised answer that a reward found in a completion; ``None`` where it says none.

    Of several rewards it is that of the one which says any; of two that do, the first.
    """
    for key, value in outcome.metadata.items():
        if key.rpartition("/")[2] in ANSWERS and isinstance(value, str | int | float):
            return f"={_normalised(str(value))}"
    return None


def _normalised(text: str) -> str:
    """Blanks, dollar signs and a full stop at the ends go; numbers are written in one way; case does not count."""
    text = " ".join(_ENDS.sub("", text).split()).casefold()
    if len(text) > _LONGEST_NUMBER:
        return text
    try:
        number = Decimal(_COMMA.sub("", text)).normalize()
    except ArithmeticError:
        return text
    return str(number) if number.is_finite() else text
