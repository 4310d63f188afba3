"""How long a weight update stops the embedded engine's decoding, with 64 requests in flight.

    python benchmarks/bench_weight_update.py [--updates 30] [--json FILE]

The engine reports for each update how long nothing was decoded (``blocked``), of which the copy from shared memory
and, with ``kv_on_update=recompute``, the prefill of the live prefixes. The bound is one decode step plus one copy of
the weights plus one prefill of prefixes of the same lengths, the last two measured alone in this process, in turns
with the updates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from bench_engine import make_model

from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine.inference import EmbeddedEngine
from areal_x.engine.inference.model_runner import ModelRunner
from areal_x.engine.transfer.staging import LiveWeights
from areal_x.engine.weights import SharedWeights, StagedSync, WeightsReader

NUM_SLOTS, MAX_LENGTH, VOCAB = 64, 256, 4096
SHOWN = ("blocked", "copy", "prefill", "decode_step", "copy_alone", "prefill_alone", "bound", "stage", "publish")


def alone(runner: ModelRunner, reader: WeightsReader, prefix_lengths: Sequence[int]) -> tuple[float, float]:
    """Seconds of one copy of the weights and of one prefill, with nothing around them."""
    targets = runner.parameters()
    rng = np.random.default_rng(0)
    prefixes = [(row, rng.integers(2, VOCAB, n).astype(np.int32)) for row, n in enumerate(prefix_lengths)]
    with torch.inference_mode():
        started = time.perf_counter()
        reader.copy_into(targets, 0)
        copied = time.perf_counter()
        runner.prefill(prefixes)
        return copied - started, time.perf_counter() - copied


async def keep_busy(engine: EmbeddedEngine) -> None:
    """One request after another in one slot."""
    rng = np.random.default_rng()
    while True:
        prompt = rng.integers(2, VOCAB, int(rng.integers(8, 33)))
        await engine.agenerate(ModelRequest(prompt, SamplingParams(max_new_tokens=128, ignore_eos=True)))


async def measure(kv_on_update: str, updates: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    policy = make_model(VOCAB)
    shared = SharedWeights.create(policy.named_parameters())
    shared.write(0, policy.named_parameters())
    reader = WeightsReader(shared.new_reader())
    runner = ModelRunner(make_model(VOCAB), NUM_SLOTS, MAX_LENGTH)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as path:
        policy.save_pretrained(path)
        engine = EmbeddedEngine(
            path, num_slots=NUM_SLOTS, max_length=MAX_LENGTH, device="cpu", weights=shared, kv_on_update=kv_on_update
        )
        await engine.start()
        sync = StagedSync(LiveWeights(policy.named_parameters), shared, [engine])
        clients = [asyncio.create_task(keep_busy(engine)) for _ in range(NUM_SLOTS)]
        try:
            for version in range(1, updates + 4):
                await asyncio.sleep(0.1)
                started = time.perf_counter()
                await sync.stage(version)
                await sync.publish(version)
                publish = time.perf_counter() - started
                report = engine.last_update
                assert report is not None and report.num_live == NUM_SLOTS
                # The engine pauses while its baselines are taken, so that both sides have the machine alone.
                await engine.pause()
                copy, prefill = alone(runner, reader, report.prefix_lengths)
                await engine.resume()
                if version > 3:
                    rows.append(
                        {
                            "blocked": report.blocked_seconds,
                            "copy": report.copy_seconds,
                            "prefill": report.prefill_seconds,
                            "decode_step": report.decode_step_seconds,
                            "copy_alone": copy,
                            "prefill_alone": prefill,
                            "bound": report.decode_step_seconds + copy + prefill,
                            "publish": publish,
                            "stage": sync.stage_seconds,
                            "prefix_tokens": sum(report.prefix_lengths),
                        }
                    )
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            await engine.close()
            shared.close()
    medians: dict[str, Any] = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    medians["blocked_over_bound"] = statistics.median(row["blocked"] / row["bound"] for row in rows)
    return {"kv_on_update": kv_on_update, **medians}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--json")
    options = parser.parse_args()
    passed = True
    for kv_on_update in ("recompute", "keep"):
        figures = asyncio.run(measure(kv_on_update, options.updates))
        ratio = figures["blocked_over_bound"]
        passed &= ratio <= 1.0
        print(f"{kv_on_update}: {NUM_SLOTS} requests in flight, {figures['prefix_tokens']:.0f} prefix tokens (medians)")
        for name in SHOWN:
            print(f"  {name:<14} {figures[name] * 1e3:8.2f} ms")
        print(f"  blocked / bound: {ratio:.2f} (asked 1.00 at most) {'PASS' if ratio <= 1.0 else 'FAIL'}")
        if options.json:
            with open(options.json, "a") as file:
                file.write(json.dumps({"benchmark": "weight_update", **figures}) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
