"""Rewards of groups, of single samples and of objects that the tests score with."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from areal_x.api import DataError, RewardResult, RewardTimeoutError, group_reward


@group_reward
def longest(completions):
    most = max(map(len, completions))
    return [float(len(text) == most) for text in completions]


@group_reward
def everything(samples, prompt, completions, prompt_ids, completion_ids, **columns):
    seen = sorted([*columns, "samples", "prompt", "completions", "prompt_ids", "completion_ids"])
    assert [sample.completion for sample in samples] == completions and prompt == samples[0].prompt
    return [RewardResult(1.0, {"ids": len(ids)}, metadata={"seen": ",".join(seen)}) for ids in completion_ids]


async def unmarked(completions):
    return tuple(float(len(text)) for text in completions)


@group_reward
def returns(value):
    return value


@group_reward
def array(samples):
    return np.arange(len(samples))


@group_reward
def hangs(samples):
    time.sleep(1000)


def exact(completions, answer):
    return float(completions == answer)


def length(completions):
    return {"reward": len(completions), "words": len(completions.split())}


def half_when_cut(truncated):
    return 0.5 if truncated else 1.0


def nothing():
    return None


def raises():
    raise KeyError("gone")


def tokens(completion_ids, value):
    return RewardResult(value, token_rewards=[0.25] * len(completion_ids))


def with_parts():
    return RewardResult(1.0, {"strict": 0.25})


class Judge:
    def __init__(self):
        self.events = []
        self.calls = 0

    async def start(self):
        await asyncio.sleep(0.01)
        self.events.append("start")

    async def close(self):
        self.events.append("close")

    def metrics(self):
        return {"calls": float(self.calls)}

    def check_columns(self, columns):
        if "rubric" not in columns:
            raise DataError("the judge's template needs a column 'rubric'")

    async def __call__(self, completions):
        assert self.events == ["start"]
        self.calls += 1
        return 1.0


class Patient:
    owns_deadline = True

    async def __call__(self, seconds, limit):
        try:
            async with asyncio.timeout(limit):
                await asyncio.sleep(seconds)
        except TimeoutError:
            raise RewardTimeoutError(f"took more than {limit} s") from None
        return 1.0


@group_reward
def cut_off(truncated):
    return [float(each) for each in truncated]


async def takes_a_test(tests):
    number = float(len(tests))
    tests.pop()
    return number


@group_reward
async def takes_a_test_of_each(samples):
    numbers = [float(len(sample.data["tests"])) for sample in samples]
    for sample in samples:
        sample.data["tests"].pop()
    return numbers


async def swallows_its_deadline():
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        return 1.0


async def cancels_itself():
    raise asyncio.CancelledError("on purpose")


class Counter:
    def __call__(self, completions):
        return 1.0

    def metrics(self):
        return {"calls": 1.0}


def returns_one(value):
    return value


def singular(completion, answer):
    return float(completion == answer)


def star(*arguments):
    return 1.0
