"""Scores all completions, as often as asked, through the wrapper and the process pool that a run uses."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.api.reward_arguments import TRUNCATED
from areal_x.api.reward_records import RewardOutcome, RewardSample
from areal_x.launch.reward_check.loop_watch import LoopWatch, Stall
from areal_x.launch.reward_check.options import CheckOptions
from areal_x.launch.reward_check.samples import PromptTexts, Sample
from areal_x.process_pool import CallResult, ProcessPool

__all__ = ["ObservedPool", "Runs", "score_all"]


class ObservedPool(ProcessPool):
    """A process pool that counts what the called functions print."""

    printed_calls = 0
    printed_characters = 0
    first_output = ""

    async def call(self, *args: Any, **kwargs: Any) -> CallResult:
        """See ``ProcessPool.call``."""
        result = await super().call(*args, **kwargs)
        if result.output:
            self.printed_calls += 1
            self.printed_characters += len(result.output)
            self.first_output = self.first_output or result.output
        return result


@dataclass
class Runs:
    """What scoring gave: for each run one outcome for each sample, in the samples' order."""

    outcomes: list[list[RewardOutcome]] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    printed_calls: int = 0
    printed_characters: int = 0
    first_output: str = ""
    retried: int = 0
    """Calls that ended well only in the second try, after their worker had died."""
    totals: dict[str, float] = field(default_factory=dict)
    """The reward's own running totals, such as requests and tokens of a judge."""


async def score_all(
    wrapper: AsyncRewardWrapper,
    samples: Sequence[Sample],
    texts: PromptTexts,
    options: CheckOptions,
    pool: ObservedPool,
) -> Runs:
    """Score each sample ``options.runs`` times; runs after the first take them in another order, groups inside, too.

    A run is a whole pass, so what one call leaves behind in its worker meets other calls the second time. A group
    reward whose results are not in the order of its samples gives other scores then.
    """
    units = _units(samples, is_group=wrapper.is_group)
    runs = Runs()
    async with _observed(runs, wrapper):
        for number in range(options.runs):
            order = [list(unit) for unit in units]
            if number:
                generator = random.Random(options.seed + number)
                generator.shuffle(order)
                for unit in order:
                    generator.shuffle(unit)
            runs.outcomes.append(await _score_once(wrapper, samples, order, texts, options.concurrency))
    if not wrapper.is_async:
        runs.printed_calls, runs.printed_characters = pool.printed_calls, pool.printed_characters
        runs.first_output = pool.first_output
    runs.retried = pool.num_retried
    runs.totals = wrapper.metrics()
    return runs


def _units(samples: Sequence[Sample], *, is_group: bool) -> list[list[int]]:
    """Indices of the samples that one call scores: one, or all of an item."""
    if not is_group:
        return [[index] for index in range(len(samples))]
    by_item = itertools.groupby(range(len(samples)), key=lambda index: samples[index].item)
    return [list(indices) for _, indices in by_item]


class _CountedOutput(io.TextIOBase):
    """Takes what an async reward prints, which would tear the report apart."""

    def __init__(self) -> None:
        self.calls = 0
        self.characters = 0
        self.first = ""

    def write(self, text: str) -> int:
        self.calls += text.endswith("\n")
        self.characters += len(text)
        self.first = self.first or text
        return len(text)


@contextlib.asynccontextmanager
async def _observed(runs: Runs, wrapper: AsyncRewardWrapper) -> AsyncIterator[None]:
    """Watch the event loop and the standard output, where the reward runs on this very loop."""
    if not wrapper.is_async:
        yield
        return
    output = _CountedOutput()
    with LoopWatch() as watch, contextlib.redirect_stdout(output):
        yield
    runs.stalls = watch.stalls
    runs.printed_calls, runs.printed_characters = output.calls, output.characters
    runs.first_output = output.first


async def _score_once(
    wrapper: AsyncRewardWrapper,
    samples: Sequence[Sample],
    order: Sequence[list[int]],
    texts: PromptTexts,
    concurrency: int,
) -> list[RewardOutcome]:
    outcomes: dict[int, RewardOutcome] = {}
    waiting: Iterator[list[int]] = iter(order)

    async def score_next() -> None:
        for indices in waiting:
            unit = [samples[index] for index in indices]
            outcomes.update(zip(indices, await _score_unit(wrapper, unit, texts), strict=True))

    async with asyncio.TaskGroup() as group:
        for number in range(min(concurrency, len(order))):
            group.create_task(score_next(), name=f"reward check {number}")
    return [outcomes[index] for index in range(len(samples))]


async def _score_unit(wrapper: AsyncRewardWrapper, unit: list[Sample], texts: PromptTexts) -> list[RewardOutcome]:
    if wrapper.is_group:
        return await wrapper.group_outcomes([_record(sample, texts) for sample in unit])
    (sample,) = unit
    record = _record(sample, texts)
    columns = sample.columns | ({TRUNCATED: sample.truncated} if wrapper.takes_truncated else {})
    outcome = await wrapper.outcome(
        record.prompt, record.completion, record.prompt_ids, record.completion_ids, **columns
    )
    return [outcome]


def _record(sample: Sample, texts: PromptTexts) -> RewardSample:
    return RewardSample(
        sample.prompt,
        sample.completion,
        texts.ids(sample.prompt),
        texts.ids(sample.completion),
        dict(sample.columns),
        sample.truncated,
    )
