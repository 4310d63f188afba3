"""What the engine's client adds to a request, at 64 in flight on a real vLLM server.

    python benchmarks/bench_server_client.py [--rounds 8] [--requests 512] [--intervals 16 64] [--json FILE]

A Qwen3 of 0.7 M parameters, prompts of 32 tokens, 64 output tokens with their log-probabilities. One side is
``ServerEngine.agenerate``; the other a bare aiohttp loop that posts the same requests without streaming and parses the
JSON. Both run in this process against the same server, warmed, in turns, since a server's speed drifts. Compared are
the wall clock of a round and this process's CPU time for each request. The engine streams, which a bare loop does not:
``--intervals`` shows what the number of tokens between two messages costs; the first one is the verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import time
from collections.abc import Awaitable
from typing import Any

from bare_client import BareClient
from serving import KEY_VARIABLE, OUTPUT_TOKENS, ForeignLoad, append_json, keep_in_flight, make_requests, serving

from areal_x.api.config import ServerConfig

IN_FLIGHT = 64
ASKED_RATIO, ASKED_MILLISECONDS = 1.05, 0.4


async def timed(side: Awaitable[float]) -> tuple[float, float]:
    """Wall seconds and CPU seconds of this process."""
    gc.collect()
    before = time.process_time()
    seconds = await side
    return seconds, time.process_time() - before


async def measure(interval: int, rounds: int, num_requests: int) -> dict[str, Any]:
    engine_rounds, bare_rounds = [], []
    load = ForeignLoad()
    async with (
        serving("vllm", "0.7M", num_slots=IN_FLIGHT, stream_interval=interval) as served,
        BareClient(served.urls[0], os.environ[KEY_VARIABLE]) as bare,
    ):
        for round_number in range(rounds + 1):
            requests = make_requests(num_requests, served.vocab, seed=round_number)
            prompts = [request.input_ids.tolist() for request in requests]
            sides = [
                (engine_rounds, lambda requests=requests: keep_in_flight(served.engine, requests, IN_FLIGHT)),
                (bare_rounds, lambda prompts=prompts: bare.keep_in_flight(prompts, OUTPUT_TOKENS, IN_FLIGHT)),
            ]
            for results, side in sides if round_number % 2 else reversed(sides):
                results.append(await timed(side()))
        foreign = load.cores
    # The first round warms both.
    pairs = list(zip(engine_rounds[1:], bare_rounds[1:], strict=True))
    engine_wall, bare_wall, engine_cpu, bare_cpu = (
        statistics.median(pair[side][kind] for pair in pairs) for kind in (0, 1) for side in (0, 1)
    )
    to_ms = 1e3 / num_requests
    return {
        "benchmark": "server_client",
        "stream_interval": interval,
        "engine_seconds": engine_wall,
        "bare_seconds": bare_wall,
        "engine_cpu_ms": engine_cpu * to_ms,
        "bare_cpu_ms": bare_cpu * to_ms,
        "ratio": statistics.median(engine[0] / bare[0] for engine, bare in pairs),
        "cpu_difference_ms": statistics.median((engine[1] - bare[1]) * to_ms for engine, bare in pairs),
        "tokens_per_second": num_requests * OUTPUT_TOKENS / engine_wall,
        "foreign_cores": foreign,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=512, help="of one round")
    parser.add_argument("--intervals", type=int, nargs="+", default=[ServerConfig().stream_interval])
    parser.add_argument("--json", help="append one line of figures for each interval to this file")
    options = parser.parse_args()
    passed = True
    for place, interval in enumerate(options.intervals):
        figures = asyncio.run(measure(interval, options.rounds, options.requests))
        ratio, extra = figures["ratio"], figures["cpu_difference_ms"]
        print(
            f"{IN_FLIGHT} in flight, {options.requests} requests of {OUTPUT_TOKENS} tokens, a message each {interval} "
            f"tokens, {figures['tokens_per_second']:.0f} tokens/s "
            f"(other programs: {figures['foreign_cores']:.2f} cores)"
        )
        print(f"  engine {figures['engine_seconds']:6.2f} s   CPU {figures['engine_cpu_ms']:5.2f} ms/request")
        print(f"  bare   {figures['bare_seconds']:6.2f} s   CPU {figures['bare_cpu_ms']:5.2f} ms/request")
        verdicts = ratio <= ASKED_RATIO, extra <= ASKED_MILLISECONDS
        words = [("PASS" if good else "FAIL") if place == 0 else "" for good in verdicts]
        print(f"  wall, engine / bare       {ratio:6.3f}      ask <= {ASKED_RATIO}   {words[0]}")
        print(f"  CPU above the bare loop   {extra:6.2f} ms   ask <= {ASKED_MILLISECONDS} ms   {words[1]}")
        if place == 0:
            passed = all(verdicts)
        append_json(options.json, {**figures, "passed": all(verdicts)})
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
