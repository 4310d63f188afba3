"""Several questions at once, and one value from several votes."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from areal_x.reward.judge.errors import JudgeError, JudgeReplyError

__all__ = ["Aggregate", "ask_all", "ask_votes", "combine"]

Aggregate = Literal["mean", "median", "majority"]
Result = TypeVar("Result")


async def ask_all(questions: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All answers, in order; the first failure cancels what is left.

    Raises:
        JudgeError: of the question that failed first.
    """
    if len(questions) == 1:
        return [await questions[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(question, name="judge question") for question in questions]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def ask_votes(ask: Callable[[int], Coroutine[Any, Any, Result]], num_votes: int, min_votes: int) -> list[Result]:
    """The votes that came, ``ask(0)`` to ``ask(num_votes - 1)``.

    Raises:
        JudgeError: fewer than ``min_votes`` came; the first failure.
    """
    if num_votes == 1:
        return [await ask(0)]
    votes: list[Result] = []
    failures: list[JudgeError] = []

    async def vote(index: int) -> None:
        try:
            votes.append(await ask(index))
        except JudgeError as error:
            failures.append(error)

    async with asyncio.TaskGroup() as group:
        for index in range(num_votes):
            group.create_task(vote(index), name="judge vote")
    if len(votes) < min_votes:
        raise type(failures[0])(f"{len(votes)} of {num_votes} votes came, {min_votes} are needed; {failures[0]}")
    return votes


def combine(values: Sequence[float], how: Aggregate) -> float:
    """One value from several votes.

    Args:
        values: one at least.
        how: ``majority`` is what more than half of them say.

    Raises:
        JudgeReplyError: there is no majority.
    """
    if how == "mean":
        return statistics.fmean(values)
    if how == "median":
        return float(statistics.median(values))
    value, count = Counter(values).most_common(1)[0]
    if 2 * count <= len(values):
        raise JudgeReplyError(f"no value has more than half of the votes: {', '.join(f'{v:g}' for v in values)}")
    return value
