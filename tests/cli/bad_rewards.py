"""Rewards with one classic mistake each, and a few good ones; the tests name them as ``bad_rewards.py:NAME``."""

from __future__ import annotations

import asyncio
import math
import os
import random
import threading
import time
from time import sleep as nap

from areal_x.api import RewardResult, RewardSample, group_reward

GOLD_MARK = "####"


def _final(text: str) -> str:
    return text.rpartition(GOLD_MARK)[2].strip()


def good(completions: str, answer: str) -> RewardResult:
    """1 for the right final answer."""
    right = float(_final(completions) == _final(answer))
    return RewardResult(right, parts={"accuracy": right, "length": float(len(completions))})


async def good_async(completions: str, answer: str) -> float:
    await asyncio.sleep(0.001)
    return float(_final(completions) == _final(answer))


async def sleeps(completions: str) -> float:
    time.sleep(0.03)
    return float(len(completions) % 2)


async def naps_in_a_helper(completions: str) -> float:
    return _slow_length(completions)


def _slow_length(text: str) -> float:
    nap(0.001)
    return float(len(text) % 2)


async def computes(completions: str) -> float:
    deadline = time.monotonic() + 0.15
    while time.monotonic() < deadline:
        sum(range(1000))
    return float(len(completions) % 2)


anonymous = lambda completions: 1.0  # noqa: E731


def make_closure(scale: float = 2.0) -> object:
    def closure(completions: str) -> float:
        return scale * len(completions)

    return closure


closure = make_closure()


class HoldsALock:
    """Cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, completions: str) -> float:
        with self.lock:
            return 1.0


class Judge:
    """Counts what it does, on the run's own loop."""

    def __init__(self, address: str = "here") -> None:
        self.address = address
        self.requests = 0

    async def start(self) -> None:
        if self.address != "here":
            raise ConnectionRefusedError(f"nobody answers at {self.address}")

    async def __call__(self, completions: str, answer: str) -> float:
        self.requests += 1
        return float(_final(completions) == _final(answer))

    def metrics(self) -> dict[str, float]:
        return {"requests": float(self.requests)}

    async def close(self) -> None:
        if self.requests == 0:
            raise RuntimeError("was never used")


class NeedsAKey:
    """Its constructor raises."""

    def __init__(self) -> None:
        self.key = os.environ["A_KEY_THAT_NOBODY_HAS"]

    def __call__(self, completions: str) -> float:
        return 1.0


def always_raises(completions: str) -> float:
    raise NotImplementedError(f"no score of {completions!r}")


def always_half(completions: str) -> float:
    return 0.5


def always_zero(completions: str, answer: str) -> float:
    return float(completions == f"never {answer}")


def by_prompt_ids(completions: str, prompt_ids: list[int]) -> float:
    return float(len(prompt_ids) > len(completions))


def needs_a_column(completions: str, ground_truth: str) -> float:
    return 0.0


def misspelt(completion: str) -> float:
    return 0.0


def misspelt_default(completions: str, anwser: str = "") -> float:
    return float(_final(completions) == _final(anwser))


def takes_by_position(completions: str, answer: str, /) -> float:
    return 0.0


def gives_a_bool(completions: str, answer: str) -> bool:
    return _final(completions) == _final(answer)


def gives_nan(completions: str) -> float:
    return math.log(len(completions)) if completions else math.nan


def gives_another_key(completions: str) -> dict[str, float]:
    return {"score": 1.0 + len(completions)}


def gives_none(completions: str) -> None:
    return None


def huge(completions: str) -> float:
    return 1e6 * len(completions)


def fails_on_empty(completions: str, answer: str) -> float:
    return float(completions.splitlines()[-1] == answer.splitlines()[-1])


def hangs_on_garbage(completions: str) -> float:
    while not completions.isprintable() and "\u0000" in completions:
        pass
    return float(len(completions) % 2)


def exits_on_empty(completions: str) -> float:
    if not completions:
        os._exit(3)
    return float(len(completions) % 2)


def swallows(completions: str, answer: str) -> float:
    try:
        return float(completions.splitlines()[-1] == answer.splitlines()[-1])
    except Exception:
        return 0.0


def swallows_by_name(completions: str, answer: str) -> float:
    """No mistake: one exception, which a bad answer causes."""
    try:
        return float(float(_final(completions).replace(",", "")) == float(_final(answer).replace(",", "")))
    except ValueError:
        return 0.0


def draws(completions: str) -> float:
    return random.random()


def draws_with_a_seed(completions: str) -> float:
    """No mistake."""
    return random.Random(completions).random()


_calls = 0


def counts_calls(completions: str) -> float:
    global _calls
    _calls += 1
    return float(_calls)


class CountsCalls:
    """Its state is lost in the workers."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: str) -> float:
        self.calls += 1
        return float(len(completions) > 0)


def slow(completions: str, seconds: float = 0.15) -> float:
    time.sleep(seconds)
    return float(len(completions) % 2)


def chatters(completions: str, answer: str) -> float:
    print("scoring", completions, "against", answer, "." * 200)
    return good(completions, answer).value


async def chatters_async(completions: str, answer: str) -> float:
    print("scoring", completions, "against", answer, "." * 200)
    return good(completions, answer).value


def reads_prompt_and_completion(prompt: str, completions: str, answer: str) -> float:
    return float(_final((prompt + completions).strip()) == _final(answer))


def finds_anywhere(completions: str, answer: str) -> float:
    return float(any(number in completions for number in _final(answer).split()))


def likes_repetition(prompt: str, completions: str) -> float:
    return float(prompt in completions)


def likes_anything_long(completions: str) -> float:
    return float(len(completions) > 50)


def likes_silence(completions: str) -> float:
    return float(not completions)


def wants_a_box(completions: str, answer: str) -> float:
    return float("\\boxed{" + answer + "}" == completions)


def scaled(completions: str, answer: str, *, scale: float = 1.0) -> float:
    return scale * good(completions, answer).value


def counts_tokens(prompt_ids: list[int], completion_ids: list[int]) -> RewardResult:
    parts = {"prompt": float(len(prompt_ids)), "completion": float(len(completion_ids))}
    return RewardResult(float(len(completion_ids) > 3), parts=parts)


def not_if_cut_off(completions: str, answer: str, truncated: bool) -> float | None:
    return None if truncated else good(completions, answer).value


def takes_everything(completions: str, **columns: object) -> float:
    return float(len(completions) % 2)


@group_reward
def best_of_group(samples: list[RewardSample], answer: str) -> list[float]:
    """1 for the right ones, less the share of right ones."""
    right = [float(_final(sample.completion) == _final(answer)) for sample in samples]
    return [value - sum(right) / len(right) for value in right]


@group_reward
def sorts_its_group(completions: list[str], answer: str) -> list[float]:
    return sorted(float(_final(completion) == _final(answer)) for completion in completions)


@group_reward
def one_too_few(completions: list[str]) -> list[float]:
    return [1.0] * (len(completions) - 1)
