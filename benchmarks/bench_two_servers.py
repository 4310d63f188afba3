"""Two vLLM servers against one, the same requests, 128 in flight.

    python benchmarks/bench_two_servers.py [--rounds 5] [--requests 512] [--json FILE]

A Qwen3 of 0.7 M parameters, prompts of 32 tokens, 64 output tokens. One engine has both servers, another one the first
of them alone; they take turns. The machine's own ceiling is measured in the same rounds, without this library: two bare
client processes, each on a server of its own, against one with all requests on one server. Where that is below what is
asked, 0.9 of it counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import bare_client
from serving import KEY_VARIABLE, OUTPUT_TOKENS, ForeignLoad, append_json, keep_in_flight, make_requests, serving

from areal_x.api.config import ModelConfig, RolloutConfig, ServerConfig
from areal_x.engine.servers.build import build_server_engine

IN_FLIGHT = 128
ASKED, ASKED_OF_CEILING = 1.6, 0.9
Child = asyncio.subprocess.Process


@contextlib.asynccontextmanager
async def bare_process(
    folder: Path, name: str, url: str, prompts: Sequence[list[int]], in_flight: int
) -> AsyncIterator[Child]:
    """A bare client of one server, waiting for a line."""
    work = folder / f"{name}.json"
    # The benchmark's own key; the folder is private.
    work.write_text(
        json.dumps({
            "url": url, "key": os.environ[KEY_VARIABLE], "prompts": prompts, "max_new_tokens": OUTPUT_TOKENS,
            "in_flight": in_flight,
        })
    )  # fmt: skip
    child = await asyncio.create_subprocess_exec(
        sys.executable, bare_client.__file__, str(work), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        if (await child.stdout.readline()).strip() != b"ready":
            raise SystemExit("the bare client did not start")
        yield child
    finally:
        child.stdin.close()
        await asyncio.wait_for(child.wait(), 30)


async def all_answer(children: Sequence[Child]) -> float:
    """Seconds until every one of these clients has its answers."""
    started = time.perf_counter()
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
    for child in children:
        assert child.stdout is not None
        float(await child.stdout.readline())
    return time.perf_counter() - started


async def measure(rounds: int, num_requests: int) -> dict[str, Any]:
    load = ForeignLoad()
    results: dict[str, list[float]] = {"one": [], "two": [], "bare one": [], "bare two": []}
    # Either server has room for all requests, so that one alone is not held back.
    async with (
        serving("vllm", "0.7M", num_slots=2 * IN_FLIGHT, num_servers=2) as served,
        contextlib.AsyncExitStack() as stack,
    ):
        requests = make_requests(num_requests, served.vocab)
        prompts = [request.input_ids.tolist() for request in requests]
        first = ServerConfig(api_key_env=KEY_VARIABLE)
        rollout = RolloutConfig(
            engine="vllm", base_urls=served.urls[:1], server=first, num_slots=IN_FLIGHT, max_length=512
        )
        path = str(served.path / "model")
        alone = build_server_engine(
            ModelConfig(path=path, device="cpu"), rollout, path, log_dir=served.path, seed=1, transport=None
        )
        stack.push_async_callback(alone.close)
        await alone.start()
        half = num_requests // 2
        one = await stack.enter_async_context(bare_process(served.path, "all", served.urls[0], prompts, IN_FLIGHT))
        two = [
            await stack.enter_async_context(bare_process(served.path, f"half{n}", url, part, IN_FLIGHT // 2))
            for n, (url, part) in enumerate(zip(served.urls, (prompts[:half], prompts[half:]), strict=True))
        ]
        sides = {
            "one": lambda: keep_in_flight(alone, requests, IN_FLIGHT),
            "two": lambda: keep_in_flight(served.engine, requests, IN_FLIGHT),
            "bare one": lambda: all_answer([one]),
            "bare two": lambda: all_answer(two),
        }
        for round_number in range(rounds + 1):
            for name in sides if round_number % 2 else reversed(sides):
                seconds = await sides[name]()
                if round_number:  # The first round warms all.
                    results[name].append(seconds)
        foreign = load.cores
    speedup = statistics.median(one / two for one, two in zip(results["one"], results["two"], strict=True))
    ceiling = statistics.median(a / b for a, b in zip(results["bare one"], results["bare two"], strict=True))
    asked = ASKED if ceiling >= ASKED else ASKED_OF_CEILING * ceiling
    return {
        "benchmark": "two_servers",
        **{f"{name.replace(' ', '_')}_seconds": statistics.median(found) for name, found in results.items()},
        "speedup": speedup,
        "ceiling": ceiling,
        "asked": asked,
        "foreign_cores": foreign,
        "passed": speedup >= asked,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=512, help="of one round")
    parser.add_argument("--json", help="append one line of figures to this file")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.rounds, options.requests))
    tokens = options.requests * OUTPUT_TOKENS
    print(f"{IN_FLIGHT} in flight (medians; other programs: {figures['foreign_cores']:.2f} cores)")
    for name in ("one", "two", "bare_one", "bare_two"):
        seconds = figures[f"{name}_seconds"]
        words = f"{'bare clients, ' if 'bare' in name else 'engine, '}{name.split('_')[-1]}"
        print(f"  {words:<20} {seconds:6.2f} s  {tokens / seconds:6.0f} tokens/s")
    print(f"  two-process ceiling  {figures['ceiling']:6.2f}")
    print(f"  two servers / one    {figures['speedup']:6.2f}   ask >= {figures['asked']:.2f}", end="   ")
    print("PASS" if figures["passed"] else "FAIL")
    append_json(options.json, figures)
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
