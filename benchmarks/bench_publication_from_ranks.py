"""Publication from two sharded ranks to two vLLM servers against one rank to one server: 82 M float32 weights.

    python benchmarks/bench_publication_from_ranks.py [--rounds 9] [--json FILE]

Pause to resume, with 16 requests in flight on each server; both sides take turns. Staging (before the pause, while
servers generate) is measured, too: one process copies all weights, or two ranks copy their rows at once. So is what the
checks cost: of all samples of one version, looked at three times in an update (by whoever writes, by the driver and by
each reader).

The machine's own ceiling is measured in the same rounds, without this library's publication: a bare client tells one
server, and both at once, to load weights that lie in shared memory. Where two servers at once already take more than
1.3 x 0.9 of what one takes, that over 0.9 is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from serving import ForeignLoad, Serving, append_json, busy_lanes, serving

from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.transfer.samples import sample, sample_sums
from areal_x.engine.transfer.staging import RankWeights
from areal_x.engine.weights import StagedSync

LANES, OUTPUT_TOKENS = 16, 256
ASKED, ASKED_OF_CEILING, ASKED_CHECKS = 1.3, 0.9, 0.02
NUM_CHECKS = 3


def open_ranks() -> LocalRanks:
    """Two ranks that hold the model of the servers."""
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    ranks = LocalRanks(2, timeout_seconds=300)
    ranks.build("policy", "rank_weights:ShardedWeights", {"size": "82M"})
    return ranks


async def bare_update(clients: list[ServerClient], order: dict[str, Any], version: int) -> float:
    """Seconds from the pause of these servers to their resume, each told by a task of its own."""

    async def update(client: ServerClient) -> None:
        await client.post("/pause", mode="keep", clear_cache="true")
        await client.post("/start_weight_update")
        await client.post("/update_weights", {"update_info": {"order": order}})
        await client.post("/finish_weight_update", {"weight_version": str(version)})
        await client.post("/resume")

    started = time.perf_counter()
    await asyncio.gather(*map(update, clients))
    return time.perf_counter() - started


async def busy_publish(served: Serving) -> tuple[float, float]:
    """Seconds of staging, and from pause to resume, with requests in flight on each server."""
    lanes = LANES * len(served.engine.replicas)
    async with busy_lanes(served.engine, lanes, served.vocab, OUTPUT_TOKENS):
        while (await served.engine.health()).num_running < lanes:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        blocked = await served.publish()
    return served.sync.stage_seconds, blocked


def seconds_of_samples(served: Serving) -> float:
    """One look at the samples of a whole version."""
    started = time.perf_counter()
    sample_sums([sample(name, 1, weight.detach()) for name, weight in served.model.named_parameters()])
    return time.perf_counter() - started


async def measure(rounds: int) -> dict[str, Any]:
    load = ForeignLoad()
    found: dict[str, list[float]] = {}

    def note(**seconds: float) -> None:
        for name, value in seconds.items():
            found.setdefault(name, []).append(value)

    ranks = open_ranks()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(ranks.close)
        settings = {"num_slots": 2 * LANES, "max_length": 512, "weights": "shared_memory", "kv_cache_gib": 0.5}
        one = await stack.enter_async_context(serving("vllm", "82M", **settings))
        two = await stack.enter_async_context(serving("vllm", "82M", num_servers=2, **settings))
        two.sync = StagedSync(RankWeights(ranks), two.transport, [two.engine])
        clients = [replica.client for replica in two.engine.replicas]
        for number in range(rounds + 2):
            sides = [("one", one), ("two", two)]
            row: dict[str, float] = {}
            for name, served in sides if number % 2 else reversed(sides):
                ranks.call("policy", "change")
                row[f"stage_{name}"], row[name] = await busy_publish(served)
            order, version = two.transport.load_order(), two.version
            await asyncio.sleep(1.0)  # What was in flight has ended.
            bare = [("bare_one", clients[:1]), ("bare_two", clients)]
            for name, told in bare if number % 2 else reversed(bare):
                row[name] = await bare_update(told, order, version)
            row["samples"] = seconds_of_samples(one)
            if number > 1:  # The first rounds warm all.
                note(**row)
        assert two.engine.counters()["updates_redone"] == one.engine.counters()["updates_redone"] == 0
        foreign = load.cores
    ratio = statistics.median(two / one for one, two in zip(found["one"], found["two"], strict=True))
    ceiling = statistics.median(two / one for one, two in zip(found["bare_one"], found["bare_two"], strict=True))
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "benchmark": "publication_from_ranks",
        **medians,
        "ratio": ratio,
        "ceiling": ceiling,
        "asked": max(ASKED, ceiling / ASKED_OF_CEILING),
        "checks": NUM_CHECKS * medians["samples"] / (medians["stage_one"] + medians["one"]),
        "foreign_cores": foreign,
    }


def show(figures: dict[str, Any]) -> bool:
    """Print them; whether all that is asked is reached."""
    print(
        f"82 M float32 weights, {LANES} requests on each server (other programs: {figures['foreign_cores']:.2f} cores)"
    )
    for name, words in (("one", "1 rank, 1 server"), ("two", "2 ranks, 2 servers")):
        print(f"  {words:<20} staged in {figures[f'stage_{name}']:6.3f} s   pause to resume {figures[name]:6.3f} s")
    print(f"  bare client          1 server {figures['bare_one']:.3f} s   2 at once {figures['bare_two']:.3f} s")
    print(f"  two-process ceiling  {figures['ceiling']:6.2f}")
    fast = figures["ratio"] <= figures["asked"]
    cheap = figures["checks"] <= ASKED_CHECKS
    ratio, checks = f"{figures['ratio']:.2f}", f"{figures['checks']:.2%}"
    print(f"  2 / 1, pause to resume {ratio:>6}   ask <= {figures['asked']:.2f}   {'PASS' if fast else 'FAIL'}")
    print(f"  checks of an update    {checks:>6}   ask <= {ASKED_CHECKS:.0%}   {'PASS' if cheap else 'FAIL'}")
    return fast and cheap


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="append one line of figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = asyncio.run(measure(options.rounds))
    passed = show(figures)
    append_json(options.json, figures)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
