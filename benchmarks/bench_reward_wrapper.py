"""AsyncRewardWrapper against the standard library's process pool, in the same run.

    python benchmarks/bench_reward_wrapper.py [--json FILE] [--calls N]

Wall time per call above the function itself, with two 2,000-token lists made fresh for every call, 64 calls in flight
and two workers on both sides; the same one at a time; and the rate of trivial rewards. Rounds alternate between the two
sides, both warmed, and medians are compared. At last 200,000 calls are queued at once: none may be lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from reward_functions import second_difference, trivial

from areal_x.api import AsyncRewardWrapper
from areal_x.process_pool import ProcessPool

NUM_WORKERS = 2
NUM_TOKENS = 2000
IN_FLIGHT = 64
ROUNDS = 5
NUM_QUEUED = 200_000

Call = Callable[[list[int], list[int]], Awaitable[float]]


def fresh_lists(number: int) -> tuple[list[int], list[int]]:
    """Two lists of new integer objects, as decoding them from an engine's answer gives."""
    return [i + 1000 + number % 7 for i in range(NUM_TOKENS)], [i + 30000 + number % 5 for i in range(NUM_TOKENS)]


async def run_in_flight(call: Call, num_calls: int) -> tuple[float, float]:
    """Wall and own CPU seconds per call with ``IN_FLIGHT`` at any time; making the arguments is not counted."""
    arguments = [fresh_lists(number) for number in range(num_calls)]
    remaining = iter(arguments)

    async def lane() -> None:
        for prompt_ids, completion_ids in remaining:
            expected = prompt_ids[-1] + 2 * completion_ids[-1] - 2 * NUM_TOKENS
            assert await call(prompt_ids, completion_ids) == expected

    started, cpu_started = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(lane())
    return (time.perf_counter() - started) / num_calls, (time.process_time() - cpu_started) / num_calls


async def run_one_by_one(call: Call, num_calls: int) -> list[float]:
    """Seconds of each call, one at a time."""
    seconds = []
    for number in range(num_calls):
        prompt_ids, completion_ids = fresh_lists(number)
        started = time.perf_counter()
        await call(prompt_ids, completion_ids)
        seconds.append(time.perf_counter() - started)
    return seconds


async def run_trivial(wrapper: AsyncRewardWrapper, num_calls: int) -> float:
    """Trivial rewards per second."""
    remaining = iter(range(num_calls))

    async def lane() -> None:
        for _ in remaining:
            await wrapper("", "text")

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(256):
            group.create_task(lane())
    return num_calls / (time.perf_counter() - started)


async def run_queued(wrapper: AsyncRewardWrapper, num_calls: int) -> tuple[int, float]:
    """All calls queued at once: how many gave their result, and the seconds until the last one."""
    started = time.perf_counter()
    results = await asyncio.gather(*(wrapper("", "text") for _ in range(num_calls)))
    return sum(result == 1.0 for result in results), time.perf_counter() - started


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of them lie, in microseconds."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] * 1e6


async def measure(num_calls: int) -> dict[str, Any]:
    """All figures of one run."""
    loop = asyncio.get_running_loop()
    lists = fresh_lists(0)
    started = time.perf_counter()
    for _ in range(1000):
        second_difference(*lists)
    own_seconds = (time.perf_counter() - started) / 1000
    with ProcessPoolExecutor(NUM_WORKERS) as executor:
        async with ProcessPool(NUM_WORKERS) as pool:
            wrapper = AsyncRewardWrapper(second_difference, pool=pool)
            trivial_wrapper = AsyncRewardWrapper(trivial, pool=pool)
            await wrapper.start()
            await trivial_wrapper.start()

            async def ours(prompt_ids: list[int], completion_ids: list[int]) -> Any:
                return await wrapper("prompt", "completion", prompt_ids, completion_ids)

            async def standard(prompt_ids: list[int], completion_ids: list[int]) -> float:
                return await loop.run_in_executor(executor, second_difference, prompt_ids, completion_ids)

            sides: dict[str, Call] = {"ours": ours, "standard": standard}
            walls: dict[str, list[float]] = {"ours": [], "standard": []}
            singles: dict[str, list[float]] = {"ours": [], "standard": []}
            cpu: list[float] = []
            for side in sides.values():
                await run_in_flight(side, num_calls // 4)
            for _ in range(ROUNDS):
                for name, side in sides.items():
                    wall_seconds, cpu_seconds = await run_in_flight(side, num_calls)
                    walls[name].append(wall_seconds - own_seconds / NUM_WORKERS)
                    if name == "ours":
                        cpu.append(cpu_seconds)
                    singles[name] += await run_one_by_one(side, num_calls // 10)
            await run_trivial(trivial_wrapper, num_calls)
            rates = [await run_trivial(trivial_wrapper, num_calls * 4) for _ in range(ROUNDS)]
            num_answered, queued_seconds = await run_queued(trivial_wrapper, NUM_QUEUED)
    ours_us, standard_us = (statistics.median(walls[name]) * 1e6 for name in ("ours", "standard"))
    return {
        "wall_us": ours_us,
        "standard_wall_us": standard_us,
        "ratio": statistics.median(a / b for a, b in zip(walls["ours"], walls["standard"], strict=True)),
        "driver_cpu_us": statistics.median(cpu) * 1e6,
        "single_p50_us": percentile(singles["ours"], 0.5),
        "single_p99_us": percentile(singles["ours"], 0.99),
        "standard_single_p50_us": percentile(singles["standard"], 0.5),
        "standard_single_p99_us": percentile(singles["standard"], 0.99),
        "single_ratio": percentile(singles["ours"], 0.5) / percentile(singles["standard"], 0.5),
        "trivial_per_second": statistics.median(rates),
        "queued_answered": num_answered,
        "queued_seconds": queued_seconds,
    }


def verdict(passed: bool) -> str:
    """PASS or FAIL."""
    return "PASS" if passed else "FAIL"


def report(loop_name: str, figures: dict[str, Any]) -> bool:
    """Print one loop's figures beside what is asked."""
    passed = {
        "wall": figures["wall_us"] <= 80,
        "ratio": figures["ratio"] <= 0.3,
        "single": figures["single_ratio"] <= 0.5,
        "trivial": figures["trivial_per_second"] >= 20_000,
        "queued": figures["queued_answered"] == NUM_QUEUED,
    }
    verdicts = {name: verdict(value) for name, value in passed.items()}
    print(f"[{loop_name}] {IN_FLIGHT} in flight, two fresh lists of {NUM_TOKENS} tokens, {NUM_WORKERS} workers")
    print(f"  wall per call over the function  {figures['wall_us']:8.1f} us   ask <= 80 us    {verdicts['wall']}")
    print(f"  standard library, same run       {figures['standard_wall_us']:8.1f} us")
    print(f"  ratio (median of rounds)         {figures['ratio']:8.3f}      ask <= 0.3      {verdicts['ratio']}")
    print(f"  driver CPU per call              {figures['driver_cpu_us']:8.1f} us   (with the lane's own bookkeeping)")
    print(f"  one at a time p50 / p99          {figures['single_p50_us']:8.1f} / {figures['single_p99_us']:.1f} us")
    print(
        f"  standard library p50 / p99       {figures['standard_single_p50_us']:8.1f} / "
        f"{figures['standard_single_p99_us']:.1f} us"
    )
    print(
        f"  ratio of p50                     {figures['single_ratio']:8.3f}      ask <= 0.5      {verdicts['single']}"
    )
    rate = figures["trivial_per_second"]
    print(f"  trivial rewards                  {rate:8.0f} /s   ask >= 20,000/s {verdicts['trivial']}")
    print(
        f"  {NUM_QUEUED:,} queued at once         {figures['queued_answered']:8d} answered in "
        f"{figures['queued_seconds']:.1f} s, ask all {verdicts['queued']}"
    )
    return all(passed.values())


def main() -> None:
    """Measure under asyncio's own loop and under uvloop where it is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="append one line of figures to this file")
    parser.add_argument("--calls", type=int, default=4000, help="calls of one round")
    options = parser.parse_args()
    runners: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run}
    try:
        import uvloop

        runners["uvloop"] = uvloop.run
    except ImportError:
        print("uvloop is not installed; measuring asyncio's own loop only")
    figures = {name: run(measure(options.calls)) for name, run in runners.items()}
    passed = [report(name, values) for name, values in figures.items()]
    print(f"bench_reward_wrapper: {verdict(all(passed))}")
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps({"benchmark": "reward_wrapper", "passed": all(passed), **figures}) + "\n")


if __name__ == "__main__":
    main()
