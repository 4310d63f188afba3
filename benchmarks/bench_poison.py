"""Hanging, crashing and lying rewards among good ones: nothing is lost, nothing is wrong, nothing stays behind.

    python benchmarks/bench_poison.py [--scale 1.0] [--deadline 0.5] [--json FILE]

At scale 1.0: 1,000 calls that hang or crash, every kind in turn, and 500 that raise or return what is no reward, among
100,000 good ones, all queued at once on two workers with that deadline (a busy machine needs a longer
one). Then one fork bomb alone, watched from outside.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
import uuid
from collections import Counter
from typing import Any

from reward_functions import BAD_KINDS, HARMFUL_KINDS, fork_bomb, mixed

from areal_x.api import AsyncRewardWrapper
from areal_x.process_pool import ProcessPool

NUM_WORKERS = 2
PROCESS_LIMIT = 64
UNPICKLABLE_ARGUMENT = "an argument that cannot be pickled"
MARKER = "AREAL_X_POISON_RUN"


def marked_processes(marker: str) -> list[int]:
    """Processes that inherited the marker, this one excluded. A process that is ending shows no environment."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if f"{MARKER}={marker}\0".encode() in file.read():
                    found.append(int(entry))
        except OSError:
            continue
    return found


async def run_mixture(pool: ProcessPool, num_good: int, num_bad: int, deadline: float) -> dict[str, Any]:
    """Queue everything at once; returns counts of what was injected and what was observed."""
    wrapper = AsyncRewardWrapper(mixed, deadline, pool=pool)
    await wrapper.start()
    harmful = [kind for kind in BAD_KINDS if kind in HARMFUL_KINDS]
    lying = [kind for kind in BAD_KINDS if kind not in HARMFUL_KINDS] + [UNPICKLABLE_ARGUMENT]
    schedule = [harmful[i % len(harmful)] for i in range(num_bad)] + [
        lying[i % len(lying)] for i in range(num_bad // 2)
    ]
    random.Random(1).shuffle(schedule)
    every = max(num_good // max(len(schedule), 1), 1)
    injected: Counter[str] = Counter()
    observed: Counter[str] = Counter()
    expected_of = {**{kind: status for kind, (_, status) in BAD_KINDS.items()}, UNPICKLABLE_ARGUMENT: "error"}
    num_right = 0
    wrong: list[str] = []

    async def good(number: int) -> None:
        nonlocal num_right
        ids = [number, number + 1, number + 2]
        outcome = await wrapper.outcome("", "", [], ids, number=number, kind="")
        if outcome.status == "ok" and outcome.value == 4.0 * number + 3:
            num_right += 1
        else:
            wrong.append(f"good call {number}: {outcome}")

    async def bad(number: int, kind: str) -> None:
        injected[f"{kind}: {expected_of[kind]}"] += 1
        data: dict[str, Any] = {"number": number, "kind": kind}
        if kind == UNPICKLABLE_ARGUMENT:
            data = {"number": lambda: number, "kind": ""}
        outcome = await wrapper.outcome("", "", [], [1], **data)
        observed[f"{kind}: {outcome.status}"] += 1
        if (outcome.value is None) == (outcome.status == "ok"):
            wrong.append(f"{kind}: status {outcome.status} with value {outcome.value}")

    async with asyncio.TaskGroup() as group:
        for number in range(num_good):
            if number % every == 0 and schedule:
                group.create_task(bad(number, schedule.pop()))
            group.create_task(good(number))
    return {"num_right": num_right, "injected": injected, "observed": observed, "wrong": wrong}


async def watch_fork_bomb(pool: ProcessPool, marker: str, deadline: float) -> tuple[int, int, str]:
    """Peak of the pool's processes during a fork bomb, how many beyond the usual ones live 1 s after it, its status."""
    wrapper = AsyncRewardWrapper(fork_bomb, deadline, pool=pool)
    await wrapper.start()
    await pool.warm_up()
    usual = 1 + 2 * NUM_WORKERS  # The helper, and a guardian with its worker for each.
    task = asyncio.create_task(wrapper.outcome("", ""))
    peak = 0
    while not task.done():
        peak = max(peak, len(marked_processes(marker)))
        await asyncio.wait([task], timeout=0.02)
    outcome = task.result()
    await asyncio.sleep(1.0)
    return peak - usual, max(len(marked_processes(marker)) - usual, 0), outcome.status


async def measure(scale: float, deadline: float) -> dict[str, Any]:
    """The whole run."""
    num_good, num_bad = int(100_000 * scale), int(1_000 * scale)
    marker = os.environ[MARKER] = uuid.uuid4().hex
    descriptors_before = len(os.listdir("/proc/self/fd"))
    pool = ProcessPool(NUM_WORKERS, process_limit=PROCESS_LIMIT)
    started = time.perf_counter()
    figures = await run_mixture(pool, num_good, num_bad, deadline)
    figures["seconds"] = time.perf_counter() - started
    figures["bomb_peak"], figures["bomb_left"], figures["bomb_status"] = await watch_fork_bomb(pool, marker, deadline)
    figures["num_spawned"], figures["num_retried"] = pool.num_spawned, pool.num_retried
    await pool.close()
    figures["leaked_processes"] = len(marked_processes(marker))
    figures["leaked_descriptors"] = len(os.listdir("/proc/self/fd")) - descriptors_before
    figures["num_good"], figures["num_bad"] = num_good, num_bad
    return figures


def report(figures: dict[str, Any]) -> bool:
    """Print the figures and each check's verdict."""
    injected, observed = figures["injected"], figures["observed"]
    print(f"{'misbehaviour: expected status':62s} injected  observed")
    for key in sorted(injected | observed):
        print(f"{key:62s} {injected[key]:8d}  {observed[key]:8d}")
    for line in figures["wrong"][:10]:
        print("WRONG", line)
    checks = {
        f"good calls right: {figures['num_right']} of {figures['num_good']}": figures["num_right"]
        == figures["num_good"],
        f"injected = observed: {injected.total()} calls": injected == observed and not figures["wrong"],
        f"fork bomb: {figures['bomb_status']}, {figures['bomb_peak']} more processes, {figures['bomb_left']} left": (
            figures["bomb_status"] == "timeout"
            and 8 < figures["bomb_peak"] <= PROCESS_LIMIT
            and figures["bomb_left"] == 0
        ),
        f"leaked processes: {figures['leaked_processes']}": figures["leaked_processes"] == 0,
        f"leaked descriptors: {figures['leaked_descriptors']}": figures["leaked_descriptors"] == 0,
    }
    for text, passed in checks.items():
        print(f"{'PASS' if passed else 'FAIL'}  {text}")
    print(
        f"{figures['seconds']:.1f} s, {figures['num_spawned']} workers forked, {figures['num_retried']} calls retried"
    )
    return all(checks.values())


def main() -> None:
    """Run once; exit code 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--deadline", type=float, default=0.5, help="seconds that a call may take")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--json", help="append one line of figures to this file")
    options = parser.parse_args()
    if options.loop == "uvloop":
        import uvloop

        figures = uvloop.run(measure(options.scale, options.deadline))
    else:
        figures = asyncio.run(measure(options.scale, options.deadline))
    passed = report(figures)
    print(f"bench_poison: {'PASS' if passed else 'FAIL'}")
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps({"benchmark": "poison", "passed": passed, "loop": options.loop, **figures}) + "\n")
    raise SystemExit(not passed)


if __name__ == "__main__":
    main()
