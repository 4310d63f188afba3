"""How long a weight update stops a server, from its pause to its resume: 82 M float32 weights, requests in flight.

    python benchmarks/bench_server_weights.py [--engines vllm sglang] [--updates 9] [--json FILE]

For each way in which weights reach a server: the calls of an update by their kind (they follow one another, so they
add up to the whole), and for how long the engine says that the server stood still. The trainer writes the weights
before (``stage``), while the server generates. The bound is one copy of all weights from memory to memory, measured in
the same process in turns with the updates. A verdict is asked of vLLM over shared memory.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import torch
from serving import ForeignLoad, Serving, append_json, busy_lanes, serving

from areal_x.api.errors import ConfigError

WAYS = {"vllm": ("shared_memory", "gloo", "disk"), "sglang": ("shared_memory", "gloo", "disk")}
LANES, OUTPUT_TOKENS = 16, 256
ASKED_SECONDS = 0.45
KINDS = {
    "pause": ("/pause", "/pause_generation", "/flush_cache"),
    "load": ("/update_weights", "/update_weights_from_disk", "/update_weights_from_distributed"),
    "resume": ("/resume", "/continue_generation", "/is_sleeping"),
}


def watch_calls(served: Serving) -> dict[str, float]:
    """Seconds by kind of call, added up as they are made; ``checks`` are all that are named nowhere else."""
    spent: dict[str, float] = {}
    client = served.engine.replicas[0].client

    def timing(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def timed(path: str, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return await call(path, *args, **kwargs)
            finally:
                kind = next((kind for kind, paths in KINDS.items() if path in paths), "checks")
                spent[kind] = spent.get(kind, 0.0) + time.perf_counter() - started

        return timed

    client.post, client.get = timing(client.post), timing(client.get)  # type: ignore[method-assign]
    return spent


async def measure(kind: str, way: str, updates: int) -> dict[str, Any]:
    rows: list[dict[str, float]] = []
    load = ForeignLoad()
    async with serving(kind, "82M", num_slots=LANES, max_length=512, weights=way, kv_cache_gib=1.0) as served:
        source = torch.cat([parameter.flatten() for parameter in served.model.parameters()])
        target = torch.empty_like(source)
        spent = watch_calls(served)
        async with busy_lanes(served.engine, LANES, served.vocab, OUTPUT_TOKENS):
            for number in range(updates + 2):
                while (await served.engine.health()).num_running < LANES:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(1.0)
                spent.clear()
                blocked = await served.publish()
                if number > 1:
                    rows.append({"blocked": blocked, "stage": served.sync.stage_seconds, **spent})
            assert served.engine.counters()["updates_redone"] == 0
        for row in [*rows, rows[0]]:
            started = time.perf_counter()
            target.copy_(source)
            row["copy_alone"] = time.perf_counter() - started
        foreign = load.cores
    names = sorted({name for row in rows for name in row})
    medians = {name: statistics.median(row.get(name, 0.0) for row in rows) for name in names}
    return {
        "benchmark": "server_weights",
        "engine": kind,
        "way": way,
        "megabytes": source.numel() * 4 / 1e6,
        **medians,
        "over_copy": medians["blocked"] / medians["copy_alone"],
        "slowest": max(row["blocked"] for row in rows),
        "foreign_cores": foreign,
    }


def show(figures: dict[str, Any], asked: bool) -> bool:
    """Print them; whether what is asked is reached."""
    print(
        f"{figures['engine']}, {figures['way']}: {figures['megabytes']:.0f} MB, {LANES} requests in flight "
        f"(medians; other programs: {figures['foreign_cores']:.2f} cores)"
    )
    parts = "   ".join(f"{name} {figures.get(name, 0.0) * 1e3:.0f}" for name in ("pause", "load", "resume", "checks"))
    print(f"  calls, ms: {parts}   (written before: {figures['stage'] * 1e3:.0f})")
    print(f"  bound, one copy alone {figures['copy_alone']:6.3f} s   blocked / bound {figures['over_copy']:.1f}")
    passed = figures["blocked"] <= ASKED_SECONDS
    verdict = f"   ask <= {ASKED_SECONDS} s   {'PASS' if passed else 'FAIL'}" if asked else ""
    print(f"  pause to resume       {figures['blocked']:6.3f} s   slowest {figures['slowest']:.3f} s{verdict}")
    return passed or not asked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=sorted(WAYS), default=["vllm", "sglang"])
    parser.add_argument("--ways", nargs="+", help="default: all that a CPU can do")
    parser.add_argument("--updates", type=int, default=9)
    parser.add_argument("--json", help="append one line of figures for each way to this file")
    options = parser.parse_args()
    passed = True
    for kind in options.engines:
        for way in options.ways or WAYS[kind]:
            try:
                figures = asyncio.run(measure(kind, way, options.updates))
            except ConfigError as error:
                if kind == "vllm":
                    raise
                print(f"{kind}, {way}: not measured: {error}")
                continue
            passed &= show(figures, (kind, way) == ("vllm", "shared_memory"))
            append_json(options.json, figures)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
