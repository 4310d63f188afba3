"""Rewards that the wrapper's tests score with."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from areal_x.api import RewardResult


def exact(completions, answer):
    return float(completions == answer)


def returns(value):
    return value


def everything(prompt, completions, prompt_ids, completion_ids, **data):
    kinds = (type(prompt_ids).__name__, type(completion_ids).__name__)
    return {"reward": 1.0, "seen": sorted(data), "kinds": kinds, "length": len(prompt_ids) + len(completion_ids)}


def numpy_value(kind):
    return {"float32": np.float32(0.5), "int64": np.int64(2), "bool": np.bool_(True), "array0": np.array(3.0)}[kind]


def parts(completion_ids, short=False):
    tokens = [0.5] * (len(completion_ids) - short)
    return RewardResult(1.0, {"format": 0.2}, token_rewards=tokens, step_rewards=[1.0, 2], metadata={"why": "so"})


def bad_part():
    return RewardResult(1.0, {"format": float("nan")})


def hang():
    time.sleep(1000)


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


def fail(answer):
    print("looked at", answer)
    raise KeyError(answer)


def coroutine_in_disguise():
    async def later():
        return 1.0

    return later()


def positional(completions, /):
    return 1.0


def scaled(completions, scale, answer="x"):
    return scale * (completions == answer)


class Judge:
    async def __call__(self, completions, seconds=0.0):
        import asyncio

        await asyncio.sleep(seconds)
        return float(len(completions))


async def judge(completions, prompt_ids, seconds=0.0, fail=False):
    import asyncio

    await asyncio.sleep(seconds)
    if fail:
        raise TimeoutError("the judge's own")
    return len(completions) + 10 * isinstance(prompt_ids, list)


def score_of_main(completions):
    return 1.0
