"""Isolated runs of a short program: how many a second, and how long each takes.

    python benchmarks/bench_sandbox.py [--json FILE] [--runs N]

In the same run: a cold interpreter for each program (the baseline), and a bare fork of a warm interpreter without any
isolation (the bound). Rounds alternate between the three, and medians are compared. One helper does one run at a time,
so that its rate is that of a core; then all cores work at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from areal_x.reward.sandbox import Sandbox

ROUNDS = 5
PROGRAM = "import math\nnumbers = list(map(int, input().split()))\nprint(sum(numbers), math.gcd(*numbers))\n"
INPUT, OUTPUT = "12 18 30\n", "60 6\n"
PYTHON = getattr(sys, "_base_executable", None) or sys.executable


def cold_interpreter() -> float:
    """Seconds of one program in a new interpreter."""
    started = time.perf_counter()
    done = subprocess.run([PYTHON, "-I", "-c", PROGRAM], input=INPUT, capture_output=True, text=True, check=True)
    assert done.stdout == OUTPUT
    return time.perf_counter() - started


BARE_FORKS = """
import io, os, sys, time
program, text, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
for _ in range(runs):
    started = time.perf_counter()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        sys.stdin = io.StringIO(text)
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 100)
    os.waitpid(pid, 0)
    os.close(reader)
    print(time.perf_counter() - started, file=sys.stderr)
"""


def bare_forks(runs: int) -> list[float]:
    """Seconds of each program in a fork of a small warm interpreter that holds nothing back."""
    words = [PYTHON, "-I", "-S", "-c", BARE_FORKS, PROGRAM, INPUT, str(runs)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stderr.split()]


def foreign_load() -> float:
    """Cores that other programs keep busy, over half a second."""

    def busy() -> int:
        user, nice, system = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:4])
        return user + nice + system

    before = busy()
    time.sleep(0.5)
    return (busy() - before) / os.sysconf("SC_CLK_TCK") / 0.5


async def one_by_one(sandbox: Sandbox, runs: int) -> list[float]:
    """Seconds of each run, as its caller sees them."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        result = await sandbox.run(PROGRAM, INPUT)
        seconds.append(time.perf_counter() - started)
        assert result.stdout == OUTPUT
    return seconds


async def all_cores(sandbox: Sandbox, runs: int) -> float:
    """Runs per second with all helpers busy."""
    remaining = iter(range(runs))

    async def lane() -> None:
        for _ in remaining:
            assert (await sandbox.run(PROGRAM, INPUT)).stdout == OUTPUT

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(sandbox.num_runners * 2):
            group.create_task(lane())
    return runs / (time.perf_counter() - started)


async def measure(runs: int) -> dict[str, Any]:
    """All figures."""
    loads, cold, bare, ours, rates, all_rates = [], [], [], [], [], []
    async with Sandbox(1) as one, Sandbox() as many:
        await one_by_one(one, runs // 5)
        for _ in range(ROUNDS):
            loads.append(await asyncio.to_thread(foreign_load))
            cold += [await asyncio.to_thread(cold_interpreter) for _ in range(5)]
            bare += await asyncio.to_thread(bare_forks, runs)
            seconds = await one_by_one(one, runs)
            ours += seconds
            rates.append(runs / sum(seconds))
            all_rates.append(await all_cores(many, runs * many.num_runners))
        cores, mode = many.num_runners, one._links[0].mode
    return {
        "mode": mode,
        "cores": cores,
        "foreign_load": max(loads),
        "cold_ms": statistics.median(cold) * 1e3,
        "bare_fork_ms": statistics.median(bare) * 1e3,
        "median_ms": statistics.median(ours) * 1e3,
        "p99_ms": statistics.quantiles(ours, n=100)[98] * 1e3,
        "per_second_per_core": statistics.median(rates),
        "all_cores_per_second": statistics.median(all_rates),
    }


def verdict(passed: bool) -> str:
    """PASS or FAIL."""
    return "PASS" if passed else "FAIL"


def report(figures: dict[str, Any]) -> bool:
    """Print the figures beside what is asked."""
    fast, many = figures["median_ms"] <= 6, figures["per_second_per_core"] >= 150
    print(f"isolated runs of a short program (isolated with the rights of: {figures['mode']})")
    print(f"  other programs keep busy              {figures['foreign_load']:8.2f} cores")
    print(f"  cold interpreter, same run            {figures['cold_ms']:8.2f} ms")
    print(f"  warm fork without isolation (bound)   {figures['bare_fork_ms']:8.2f} ms")
    print(f"  sandboxed run, median                 {figures['median_ms']:8.2f} ms   ask <= 6 ms      {verdict(fast)}")
    print(f"  sandboxed run, p99                    {figures['p99_ms']:8.2f} ms")
    print(f"  cold interpreter / sandboxed run      {figures['cold_ms'] / figures['median_ms']:8.1f}")
    rate = figures["per_second_per_core"]
    print(f"  one helper, one run at a time         {rate:8.0f} /s   ask >= 150 /s    {verdict(many)}")
    print(f"  {figures['cores']} helpers on as many cores           {figures['all_cores_per_second']:8.0f} /s")
    return fast and many


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="append one line of figures to this file")
    parser.add_argument("--runs", type=int, default=200, help="runs of one round")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.runs))
    passed = report(figures)
    print(f"bench_sandbox: {verdict(passed)}")
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps({"benchmark": "sandbox", "passed": passed, **figures}) + "\n")


if __name__ == "__main__":
    main()
