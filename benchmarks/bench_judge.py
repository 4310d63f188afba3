"""10,000 concurrent calls of the judge against a bare loop over ``AsyncOpenAI`` on aiohttp, in the same run.

    python benchmarks/bench_judge.py [--json FILE] [--calls N] [--rounds N]

The server (`judge_stub.py`, a process of its own on the same cores) answers after 2 s. Both sides ask the same
questions, all at once. The bare loop is set up as the package's documentation says (``DefaultAioHttpClient``, with a
connection for each call), has no time-outs, and faces a server without faults. The judge faces 1 % of 429, 1 % of
resets and 1 % of requests that are never answered, with 8 s for each call. Sides take turns after a warm-up; the median
of the rounds' ratios counts. A task that sleeps 1 ms at a time shows how long the judge's event loop was held up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
from run_all import busy_cores

from areal_x.reward.judge import JudgeError, LLMJudge

LATENCY_SECONDS = 2.0
DEADLINE_SECONDS = 8.0
TIMEOUT_SECONDS = 3.5
MAX_CONCURRENT = 2500
QUESTION = "word " * 200
RATIO, WALL_SECONDS, STALL_MS = 1.15, 22.0, 20.0


async def stalls(late_ms: list[float]) -> None:
    """Append how many milliseconds late the loop came back from each sleep of one."""
    while True:
        started = time.perf_counter()
        await asyncio.sleep(0.001)
        late_ms.append((time.perf_counter() - started) * 1e3 - 1.0)


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of them lie."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def timed(call: Callable[[int], Awaitable[Any]], num_calls: int) -> tuple[float, float, list[Any]]:
    """Wall seconds, own CPU seconds, and what each call gave or raised."""
    started, cpu_started = time.perf_counter(), time.process_time()
    results = await asyncio.gather(*[call(number) for number in range(num_calls)], return_exceptions=True)
    return time.perf_counter() - started, time.process_time() - cpu_started, results


async def counts(url: str, faults: bool) -> dict[str, int]:
    """What the server received and injected since the last time."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/counts?faults={int(faults)}") as reply:
        return dict(await reply.json())


async def run_bare(url: str, num_calls: int) -> dict[str, Any]:
    """The loop that a user would write."""
    await counts(url, faults=False)
    limits = httpx2.Limits(max_connections=num_calls, max_keepalive_connections=num_calls)
    http_client = openai.DefaultAioHttpClient(limits=limits, timeout=None)
    async with openai.AsyncOpenAI(
        api_key="none", base_url=f"{url}/v1", http_client=http_client, timeout=None
    ) as client:

        async def call(number: int) -> str | None:
            content = f"{QUESTION}\nanswer {number}"
            messages: Any = [{"role": "system", "content": "You judge."}, {"role": "user", "content": content}]
            reply = await client.chat.completions.create(model="stub", messages=messages, temperature=0, max_tokens=64)
            return reply.choices[0].message.content

        wall, cpu, results = await timed(call, num_calls)
    assert results == ["Score: 7"] * num_calls
    return {"wall": wall, "cpu_ms": cpu / num_calls * 1e3}


async def run_judge(url: str, num_calls: int) -> dict[str, Any]:
    """The judge, on the server with faults."""
    await counts(url, faults=True)
    judge = LLMJudge(
        model="stub",
        base_url=f"{url}/v1",
        api_key_env=None,
        system="You judge.",
        prompt="{prompt}\n{completion}",
        parser="number",
        sampling={"temperature": 0, "max_tokens": 64},
        max_concurrent=min(MAX_CONCURRENT, num_calls),
        timeout_seconds=TIMEOUT_SECONDS,
        deadline_seconds=DEADLINE_SECONDS,
    )
    await judge.start()
    late_ms: list[float] = []
    heartbeat = asyncio.create_task(stalls(late_ms))
    wall, cpu, results = await timed(lambda n: judge(prompt=QUESTION, completions=f"answer {n}"), num_calls)
    heartbeat.cancel()
    found = judge.metrics()
    await judge.close()
    return {
        "wall": wall,
        "cpu_ms": cpu / num_calls * 1e3,
        "stall_p50_ms": percentile(late_ms, 0.5),
        "stall_p99_ms": percentile(late_ms, 0.99),
        "stall_max_ms": max(late_ms),
        "injected": await counts(url, faults=False),
        "observed": {name: int(found.get(f"fault/{name}", 0)) for name in ("http_429", "reset", "timeout")},
        "requests": int(found["requests"]),
        "replies": int(found["replies"]),
        "right": sum(getattr(result, "value", None) == 0.7 for result in results),
        "failed": sum(isinstance(result, JudgeError) for result in results),
        "answered": int(found["answered"]),
        "failures": sorted({str(result)[:200] for result in results if isinstance(result, Exception)})[:3],
    }


def is_accounted(run: dict[str, Any], num_calls: int) -> bool:
    """Whether every call ended in a verdict or an error, and every request in what the server did with it."""
    injected, observed = run["injected"], run["observed"]
    # A reply that is late counts as a time-out, beside the requests that were never answered.
    late = run["requests"] - run["replies"] - observed["http_429"] - observed["reset"] - injected["never"]
    return (
        run["right"] + run["failed"] == num_calls
        and run["right"] == run["answered"]
        and run["requests"] == injected["received"]
        and all(observed[name] == injected[name] for name in ("http_429", "reset"))
        and observed["timeout"] == injected["never"] + late
        and late >= 0
    )


async def measure(url: str, num_calls: int, rounds: int) -> dict[str, Any]:
    """Warm both sides, then let them take turns."""
    for side in (run_bare, run_judge):
        await side(url, min(num_calls, 200))
    bare, judge = [], []
    for _ in range(rounds):
        bare.append(await run_bare(url, num_calls))
        judge.append(await run_judge(url, num_calls))
    return {"bare": bare, "judge": judge}


def verdict(passed: bool) -> str:
    """PASS or FAIL."""
    return "PASS" if passed else "FAIL"


def report(runs: dict[str, Any], num_calls: int) -> dict[str, Any]:
    """Print the figures beside what is asked."""
    bare, judge = runs["bare"], runs["judge"]
    figures = {
        "wall_seconds": statistics.median(run["wall"] for run in judge),
        "bare_wall_seconds": statistics.median(run["wall"] for run in bare),
        "ratio": statistics.median(a["wall"] / b["wall"] for a, b in zip(judge, bare, strict=True)),
        "cpu_ms": statistics.median(run["cpu_ms"] for run in judge),
        "bare_cpu_ms": statistics.median(run["cpu_ms"] for run in bare),
        "stall_p99_ms": statistics.median(run["stall_p99_ms"] for run in judge),
        "stall_max_ms": max(run["stall_max_ms"] for run in judge),
        "accounted": all(is_accounted(run, num_calls) for run in judge),
        "failed": max(run["failed"] for run in judge),
    }
    checks = [figures["ratio"] <= RATIO, figures["wall_seconds"] <= WALL_SECONDS]
    checks += [figures["stall_p99_ms"] < STALL_MS, figures["accounted"]]
    figures["passed"] = all(checks)
    print(f"{num_calls} calls at once, replies after {LATENCY_SECONDS:g} s, {len(judge)} rounds")
    print(f"  judge, with faults               {figures['wall_seconds']:7.2f} s    ask <= 22 s    {verdict(checks[1])}")
    print(f"  bare AsyncOpenAI, without        {figures['bare_wall_seconds']:7.2f} s")
    print(f"  ratio (median of rounds)         {figures['ratio']:7.3f}      ask <= 1.15    {verdict(checks[0])}")
    print(f"  CPU per call, judge / bare       {figures['cpu_ms']:7.2f} / {figures['bare_cpu_ms']:.2f} ms")
    print(f"  event loop held up, p99          {figures['stall_p99_ms']:7.1f} ms   ask < 20 ms    {verdict(checks[2])}")
    print(f"  event loop held up, longest      {figures['stall_max_ms']:7.1f} ms")
    for run in judge:
        print(f"  injected {run['injected']}")
        print(f"  observed {run['observed']}, {run['requests']} requests, {run['replies']} replies")
        print(f"  {run['right']} verdicts, {run['failed']} errors {run['failures'] or ''}")
    print(f"  every call accounted for                                       {verdict(checks[3])}")
    return figures


def main() -> None:
    """Start the server, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="append one line of figures to this file")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < options.calls + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"other programs keep {busy_cores():.2f} cores busy")
    stub = [sys.executable, str(Path(__file__).with_name("judge_stub.py")), str(LATENCY_SECONDS)]
    run: Callable[..., Any] = asyncio.run
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        print("uvloop is not installed; measuring asyncio's own loop")
    with subprocess.Popen(stub, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        try:
            runs = run(measure(url, options.calls, options.rounds))
        finally:
            server.kill()
    figures = report(runs, options.calls)
    print(f"bench_judge: {verdict(figures['passed'])}")
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps({"benchmark": "judge", **figures}) + "\n")


if __name__ == "__main__":
    main()
