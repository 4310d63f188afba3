"""AsyncRewardWrapper: what it passes on, what it accepts, and how failures look."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reward_samples as samples

from areal_x.api import (
    AsyncRewardWrapper,
    ConfigError,
    DataError,
    RewardCrashError,
    RewardError,
    RewardResult,
    RewardTimeoutError,
    close_default_pool,
    default_pool,
)
from areal_x.api.reward_records import check_reward
from areal_x.process_pool import ProcessPool


@pytest.fixture
async def pool():
    async with ProcessPool(2) as pool:
        yield pool


async def test_a_number_comes_as_a_float(pool):
    wrapper = AsyncRewardWrapper(samples.exact, pool=pool)
    value = await wrapper("q", "4", [1], [2], answer="4", unused=object())
    assert value == 1.0 and type(value) is float
    assert await wrapper("q", "5", [1], [2], answer="4") == 0.0
    assert type(await AsyncRewardWrapper(samples.returns, pool=pool)("", "", value=2)) is float


async def test_arguments_go_by_name_and_ids_are_lists(pool):
    wrapper = AsyncRewardWrapper(samples.everything, pool=pool)
    for ids in ([1, 2], np.array([1, 2], dtype=np.int32), np.array([1, 2]), (1, 2)):
        value = await wrapper("p", "c", ids, ids, answer="4", level=3)
        assert value == {"reward": 1.0, "seen": ["answer", "level"], "kinds": ("list", "list"), "length": 4}
    outcome = await wrapper.outcome("p", "c", [1], [2])
    assert (outcome.status, outcome.value, outcome.parts) == ("ok", 1.0, {"length": 2.0})
    assert outcome.metadata == {"seen": [], "kinds": ("list", "list")}


@pytest.mark.parametrize("kind", ["float32", "int64", "array0"])
async def test_numpy_scalars_are_numbers(pool, kind):
    value = await AsyncRewardWrapper(samples.numpy_value, pool=pool)("", "", kind=kind)
    assert type(value) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "nan, expected a finite number"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (10**400, "a whole number too large, expected a finite number"),
        (1e39, "1e.39, expected a finite number"),
        (True, r"a bool \(True\).*return 1.0 or 0.0"),
        (np.bool_(True), "bool"),
        ("1.0", r"a str \('1.0'\)"),
        ([1.0], "a list"),
        (np.ones(2), "a ndarray"),
        (1j, "a complex"),
        ({"accuracy": 1.0}, r"without 'reward'; its keys: 'accuracy'"),
        ({"reward": None}, "None under 'reward'"),
        ({"reward": math.nan}, "under 'reward' nan"),
        (RewardResult(math.nan), "RewardResult.value is nan"),
        (RewardResult(1.0, {"a": True}), r"parts\['a'\] is a bool"),
        (RewardResult(3.0, token_rewards=[1.0, 2.0]), "2 numbers, the completion has 3 tokens"),
        (RewardResult(None, token_rewards=[1.0, "x", 1.0]), r"token_rewards\[1\] is a str"),
        (RewardResult(1.0, step_rewards=3.0), "step_rewards is a float"),  # type: ignore[arg-type]
    ],
)
async def test_what_is_no_reward_is_an_error(pool, value, message):
    wrapper = AsyncRewardWrapper(samples.returns, pool=pool)
    with pytest.raises(RewardError, match=message):
        await wrapper("", "", [1], [1, 2, 3], value=value)
    outcome = await wrapper.outcome("", "", [1], [1, 2, 3], value=value)
    assert (outcome.status, outcome.value) == ("error", None)
    assert "returns" in outcome.error


async def test_none_means_not_applicable(pool):
    wrapper = AsyncRewardWrapper(samples.returns, pool=pool)
    assert await wrapper("", "", value=None) is None
    outcome = await wrapper.outcome("", "", value=None)
    assert (outcome.status, outcome.value, outcome.error) == ("not_applicable", None, None)


async def test_a_result_keeps_its_parts(pool):
    wrapper = AsyncRewardWrapper(samples.parts, pool=pool)
    result = await wrapper("", "", [1], [1, 2])
    assert isinstance(result, RewardResult) and result.parts == {"format": 0.2}
    outcome = await wrapper.outcome("", "", [1], [1, 2])
    assert (outcome.value, outcome.parts, outcome.metadata) == (1.0, {"format": 0.2}, {"why": "so"})
    assert (outcome.token_rewards, outcome.step_rewards) == ([0.5, 0.5], [1.0, 2.0])
    assert (await wrapper.outcome("", "", [1], [1, 2], short=True)).status == "error"
    with pytest.raises(RewardError, match="parts"):
        await AsyncRewardWrapper(samples.bad_part, pool=pool)("", "")


async def test_another_key_of_a_dict(pool):
    wrapper = AsyncRewardWrapper(samples.returns, pool=pool, reward_key="score")
    assert (await wrapper.outcome("", "", value={"score": 2})).value == 2.0


async def test_failures_are_typed(pool):
    with pytest.raises(RewardTimeoutError, match=r"hang did not return within 0\.2 s"):
        await AsyncRewardWrapper(samples.hang, 0.2, pool=pool)("", "")
    with pytest.raises(RewardCrashError, match=r"crash.*SIGKILL"):
        await AsyncRewardWrapper(samples.crash, pool=pool)("", "")
    with pytest.raises(RewardError, match="fail: KeyError: '4'") as caught:
        await AsyncRewardWrapper(samples.fail, pool=pool)("", "", answer="4")
    assert "looked at 4" in caught.value.__notes__[0]
    with pytest.raises(RewardError, match="coroutine"):
        await AsyncRewardWrapper(samples.coroutine_in_disguise, pool=pool)("", "")


async def test_outcomes_have_status_time_and_reason(pool):
    before = time.monotonic()
    hang = await AsyncRewardWrapper(samples.hang, 0.2, pool=pool).outcome("", "")
    assert hang.status == "timeout" and 0.2 <= hang.seconds < 20.0
    assert before <= hang.started_at <= time.monotonic()
    assert (await AsyncRewardWrapper(samples.crash, pool=pool).outcome("", "")).status == "crash"
    failed = await AsyncRewardWrapper(samples.fail, pool=pool).outcome("", "", answer="4")
    assert failed.status == "error" and "Traceback" in failed.error and "looked at 4" in failed.error
    missing = await AsyncRewardWrapper(samples.exact, pool=pool).outcome("", "")
    assert missing.status == "error" and "answer" in missing.error


async def test_async_rewards_are_awaited_on_the_loop():
    wrapper = AsyncRewardWrapper(samples.judge, 0.2)
    assert wrapper.is_async
    assert await wrapper("", "abc", np.array([1, 2])) == 13.0
    with pytest.raises(RewardTimeoutError):
        await wrapper("", "abc", [], seconds=60.0)
    with pytest.raises(RewardError, match="own") as caught:
        await wrapper("", "abc", [], fail=True)
    assert not isinstance(caught.value, RewardTimeoutError)
    outcome = await wrapper.outcome("", "abc", [], seconds=60.0)
    assert outcome.status == "timeout" and 0.2 <= outcome.seconds < 30.0
    assert (await wrapper.outcome("", "abc", [], fail=True)).status == "error"
    assert await AsyncRewardWrapper(samples.Judge())("", "abcd") == 4.0
    assert await AsyncRewardWrapper(functools.partial(samples.judge, seconds=0.0))("", "a", []) == 11.0


async def test_many_async_rewards_overlap():
    wrapper = AsyncRewardWrapper(samples.judge)
    started = time.monotonic()
    await asyncio.gather(*(wrapper("", "abc", [], seconds=0.2) for _ in range(500)))
    assert time.monotonic() - started < 30.0


async def test_bound_arguments_win_over_columns(pool):
    wrapper = AsyncRewardWrapper(functools.partial(samples.scaled, scale=3.0), pool=pool)
    assert await wrapper("", "x", scale=100.0) == 3.0


async def test_import_paths(pool, tmp_path):
    (tmp_path / "mine.py").write_text("def score(completions):\n    return len(completions) / 2\n")
    assert await AsyncRewardWrapper(f"{tmp_path}/mine.py:score", pool=pool)("", "abc") == 1.5
    assert await AsyncRewardWrapper("reward_samples:exact", pool=pool)("", "a", answer="a") == 1.0
    for path in ("reward_samples:exacly", "nowhere.py:f", "no_such_package:f"):
        with pytest.raises(ConfigError):
            AsyncRewardWrapper(path)


async def test_bad_functions_are_refused_before_the_run(pool):
    with pytest.raises(ConfigError, match="by position only"):
        AsyncRewardWrapper(samples.positional)
    with pytest.raises(ConfigError, match="callable"):
        AsyncRewardWrapper(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="timeout_seconds"):
        AsyncRewardWrapper(samples.exact, 0.0)
    with pytest.raises(ConfigError, match="max_workers"):
        AsyncRewardWrapper(samples.exact, max_workers=0)
    with pytest.raises(ConfigError, match=r"functools\.partial"):
        await AsyncRewardWrapper(lambda completions: 1.0, pool=pool).start()


def test_columns_are_checked():
    wrapper = AsyncRewardWrapper(samples.exact)
    wrapper.check_columns(["question", "answer"])
    wrapper.check_columns(["prompt", "answer"], prompt_key="prompt")
    with pytest.raises(DataError, match="'completion_ids' of the data has the name of a reward argument"):
        wrapper.check_columns(["answer", "completion_ids"])
    with pytest.raises(DataError, match="'prompt'"):
        wrapper.check_columns(["prompt", "question", "answer"], prompt_key="question")
    with pytest.raises(DataError, match="needs a column 'answer'; the data has: question"):
        wrapper.check_columns(["question"])


async def test_max_workers_is_a_share_of_the_pool(pool):
    slow = AsyncRewardWrapper(samples.hang, 3.0, max_workers=1, pool=pool)
    quick = AsyncRewardWrapper(samples.exact, pool=pool)
    await slow.start()
    await quick.start()
    hanging = [asyncio.create_task(slow.outcome("", "")) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert await quick("", "a", answer="a") == 1.0
    assert not any(task.done() for task in hanging)
    outcomes = await asyncio.gather(*hanging)
    first, second = sorted(outcome.started_at for outcome in outcomes)
    assert second - first >= 3.0


def test_the_default_pool_is_one_for_each_loop():
    wrapper = AsyncRewardWrapper(samples.exact)

    async def use():
        pool = default_pool()
        assert default_pool() is pool
        assert await wrapper("", "a", answer="a") == 1.0
        await close_default_pool()
        return pool

    assert asyncio.run(use()) is not asyncio.run(use())


def test_check_reward_of_a_plain_number_is_itself():
    assert check_reward(0.25, "reward", None) == RewardResult(0.25)
    assert check_reward(np.float16(0.5), "reward", None) == RewardResult(0.5)


def test_contracts_import_fast_and_without_torch():
    program = "import sys, areal_x.api; print(sorted({'torch', 'transformers', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "['asyncio']\n"


SCRIPT = """
import asyncio
from areal_x.api import AsyncRewardWrapper

def score(completions):
    return float(len(completions))

async def main():
    print(await AsyncRewardWrapper(score)("", "abc"))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_script_needs_no_cleaning_up(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-X", "dev", str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "3.0\n"), done.stderr
    assert "Error" not in done.stderr
