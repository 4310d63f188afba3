"""The math grader behind a 30 KB chain of thought against Math-Verify, and Math-Verify through two pool workers.

    python benchmarks/bench_math_grader.py [--json FILE] [--seconds N]

First part, in one process: the wall time of the ``math`` reward and of Math-Verify (``parse`` of gold and text,
``verify``), one after the other, and whether the verdicts are equal. Medians over golds in the shares that collections
of problems have, and then over all pairs of all kinds of answers, where every kind counts the same.

Second part: Math-Verify itself behind 30 KB texts, through a ``ProcessPool`` of two workers, and in two independent
processes; rounds alternate within the same minute, and the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

from math_answers import chain_of_thought, pairs, usual_pairs

from areal_x.process_pool import ProcessPool
from areal_x.reward import get_reward_fn

NUM_BYTES = 30_000
NUM_WORKERS = 2
ROUNDS = 5
ASK_MEDIAN_MS = 0.5
ASK_THROUGHPUT = 0.95


def math_verify(gold: str, text: str) -> float:
    """Math-Verify's verdict, with its signal time-outs off as in any worker."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parsed = parse(gold, parsing_timeout=None), parse(text, parsing_timeout=None)
    return float(verify(*parsed, float_rounding=6, timeout_seconds=None))


def measure_latency(cases: list[tuple[str, str]]) -> dict[str, Any]:
    """Times of both on every pair, alternating."""
    reward = get_reward_fn("math")
    prefix = chain_of_thought(NUM_BYTES)
    reward(completions=f"{prefix}\\boxed{{x}}", answer="y")
    math_verify("$y$", "$x$")
    ours: list[float] = []
    theirs: list[float] = []
    different: list[tuple[str, str]] = []
    for gold, answer in cases:
        text, wanted = f"{prefix}So it is \\boxed{{{answer}}}", f"\\boxed{{{gold}}}"
        started = time.perf_counter()
        value = reward(completions=text, answer=gold).value
        middle = time.perf_counter()
        verdict = math_verify(wanted, text)
        theirs.append(time.perf_counter() - middle)
        ours.append(middle - started)
        # Math-Verify searches the whole text, and where the box is no mathematics it takes a number from elsewhere:
        # its verdict on the answer alone is what counts.
        if value != verdict and value != math_verify(wanted, f"\\boxed{{{answer}}}"):
            different.append((gold, answer))
    return {
        "pairs": len(cases),
        "ours_median_ms": statistics.median(ours) * 1e3,
        "ours_p90_ms": statistics.quantiles(ours, n=10)[-1] * 1e3,
        "theirs_median_ms": statistics.median(theirs) * 1e3,
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "below_ask": sum(value <= ASK_MEDIAN_MS / 1e3 for value in ours) / len(ours),
        "different": different,
    }


def texts() -> list[tuple[str, str]]:
    """Golds and texts of the second part: 30 KB each, with answers of all kinds at the end."""
    answers = ["72", r"\frac{3}{4}", r"2\sqrt{3}", "(1,2)", "x^2+1", "0.25", r"\pi", r"\text{yes}"]
    prefixes = [chain_of_thought(NUM_BYTES, seed) for seed in range(4)]
    return [(f"${answer}$", f"{prefix}\\boxed{{{answer}}}") for prefix in prefixes for answer in answers]


def independent(connection: Connection) -> None:
    """A process of its own that grades for as long as it is told, and says how many it did."""
    cases = texts()
    for gold, text in cases:
        math_verify(gold, text)
    connection.send(0)
    while (seconds := connection.recv()) is not None:
        number, end = 0, time.perf_counter() + seconds
        started = time.perf_counter()
        while time.perf_counter() < end:
            math_verify(*cases[number % len(cases)])
            number += 1
        connection.send(number / (time.perf_counter() - started))


async def pool_rate(pool: ProcessPool, function: Any, seconds: float) -> float:
    """Verdicts per second through the pool, four calls in flight for each worker."""
    cases = texts()
    started = time.perf_counter()
    end = started + seconds
    done = 0

    async def lane(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            gold, text = cases[number % len(cases)]
            result = await pool.call(function, {"gold": gold, "text": text}, 30.0)
            assert result.status == "ok", result.error
            number += 1
            done += 1

    async with asyncio.TaskGroup() as group:
        for number in range(4 * NUM_WORKERS):
            group.create_task(lane(number * 5))
    return done / (time.perf_counter() - started)


async def measure_throughput(seconds: float) -> dict[str, Any]:
    """Rates of both, in alternating rounds."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(NUM_WORKERS)]
    processes = [context.Process(target=independent, args=(child,), daemon=True) for _, child in pipes]
    for process in processes:
        process.start()
    rates: dict[str, list[float]] = {"pool": [], "independent": []}
    async with ProcessPool(NUM_WORKERS) as pool:
        function = await pool.register(math_verify)
        await pool_rate(pool, function, 2.0)
        for parent, _ in pipes:
            parent.recv()
        for _ in range(ROUNDS):
            rates["pool"].append(await pool_rate(pool, function, seconds))
            for parent, _ in pipes:
                parent.send(seconds)
            rates["independent"].append(sum([await asyncio.to_thread(parent.recv) for parent, _ in pipes]))
    for parent, _ in pipes:
        parent.send(None)
    for process in processes:
        process.join(10)
    return {
        "pool_per_second": statistics.median(rates["pool"]),
        "independent_per_second": statistics.median(rates["independent"]),
        "throughput_ratio": statistics.median(a / b for a, b in zip(rates["pool"], rates["independent"], strict=True)),
    }


def verdict(passed: bool) -> str:
    """PASS or FAIL."""
    return "PASS" if passed else "FAIL"


def report_latency(title: str, figures: dict[str, Any], ask: str) -> bool:
    """Print one set of pairs; whether all verdicts are equal."""
    equal = not figures["different"]
    print(f"{figures['pairs']} answers behind a chain of thought of {NUM_BYTES} bytes, {title}")
    print(f"  math reward, median      {figures['ours_median_ms']:8.3f} ms   {ask}")
    print(f"  math reward, 90th share  {figures['ours_p90_ms']:8.3f} ms")
    print(f"  share at {ASK_MEDIAN_MS} ms or less  {figures['below_ask']:8.1%}")
    print(f"  Math-Verify, median      {figures['theirs_median_ms']:8.3f} ms")
    print(f"  ratio of the medians     {figures['ratio']:8.3f}")
    print(f"  verdicts that differ     {len(figures['different']):8d}      ask 0           {verdict(equal)}")
    for gold, answer in figures["different"][:10]:
        print(f"    gold {gold!r}, answer {answer!r}")
    return equal


def report(figures: dict[str, Any]) -> bool:
    """Print the figures beside what is asked."""
    fast = figures["usual"]["ours_median_ms"] <= ASK_MEDIAN_MS
    through = figures["throughput_ratio"] >= ASK_THROUGHPUT
    equal = report_latency("usual shares", figures["usual"], f"ask <= {ASK_MEDIAN_MS} ms   {verdict(fast)}")
    equal &= report_latency("all kinds alike", figures["all"], "(for information)")
    print(f"Math-Verify behind {NUM_BYTES} bytes, {NUM_WORKERS} workers")
    print(f"  through the pool         {figures['pool_per_second']:8.1f} /s")
    print(f"  independent processes    {figures['independent_per_second']:8.1f} /s")
    print(
        f"  ratio (median of rounds) {figures['throughput_ratio']:8.3f}      ask >= {ASK_THROUGHPUT}"
        f"     {verdict(through)}"
    )
    return fast and equal and through


def main() -> None:
    """Measure both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="append one line of figures to this file")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one throughput round")
    options = parser.parse_args()
    every = [(gold, answer) for gold, answer in pairs() if answer.strip()]
    figures: dict[str, Any] = {"usual": measure_latency(usual_pairs(500)), "all": measure_latency(every)}
    figures |= asyncio.run(measure_throughput(options.seconds))
    passed = report(figures)
    print(f"bench_math_grader: {verdict(passed)}")
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps({"benchmark": "math_grader", "passed": passed, **figures}) + "\n")


if __name__ == "__main__":
    main()
