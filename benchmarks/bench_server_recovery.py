"""What a killed server costs: two vLLM servers under load, one of them killed.

    python benchmarks/bench_server_recovery.py [--kills 2] [--engine vllm] [--json FILE]

A Qwen3 of 0.7 M parameters, 64 requests in flight at any time. The whole process group of one server gets SIGKILL.
Measured from there: until the other server has every request that was on it (``elsewhere``) and has sampled a token
since; until the server serves again (``back``), its start being the bound: the same command started alone, before. In
every other kill new weights are published while it is down. Back, it must hold the version of the other one, and its
log-probabilities must be that version's, by a forward pass here. No request may fail and no token have another version.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from typing import Any

import numpy as np
import torch
from serving import ForeignLoad, Serving, append_json, busy_lanes, make_requests, serving

from areal_x.api.records import ModelRequest
from areal_x.engine.servers.continuation import Completion
from areal_x.engine.servers.replica import Replica

LANES, OUTPUT_TOKENS = 64, 128
ASKED_ELSEWHERE, ASKED_BACK = 2.0, 40.0
TOLERANCE = 1e-4
LONGEST_SECONDS = 300.0


async def until(condition: Any, what: str) -> None:
    """Look every few milliseconds, so that looking takes no part of what is measured."""
    async with asyncio.timeout(LONGEST_SECONDS):
        try:
            while not condition():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            print(f"waited too long: {what}", flush=True)
            raise


async def error_of(served: Serving, replica: Replica) -> float:
    """How far a server's log-probabilities are from a forward pass of the newest weights."""
    (request,) = make_requests(1, served.vocab, output_tokens=32, seed=99)
    completion = Completion(ModelRequest(request.input_ids, request.sampling, request_id="probe"), 32, 7, ())
    await replica.generate(completion)
    response = completion.response(served.vocab, False, 0.0, 0.0)
    assert [span.version for span in response.version_spans] == [served.version], response.version_spans
    ids = torch.from_numpy(np.concatenate([response.input_ids, response.output_ids])).long()
    with torch.inference_mode():
        logits = served.model(input_ids=ids[None], use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits, -1)[len(response.input_ids) - 1 : -1]
    expected = logprobs.gather(1, ids[len(response.input_ids) :, None])[:, 0].numpy()
    return float(np.abs(expected - response.logprobs).max())


async def kill(served: Serving, victim: Replica, other: Replica, with_update: bool) -> dict[str, Any]:
    """One kill under load."""
    await until(lambda: victim.num_running > LANES // 4 and other.num_running > LANES // 4, "both servers work")
    await asyncio.sleep(1.0)
    assert victim.process is not None
    displaced = victim.num_running
    started = time.perf_counter()
    os.killpg(victim.process.pid, signal.SIGKILL)
    # Each lane has a request at any time, so the other server holds all that were on this one.
    await until(lambda: victim.num_running == 0 and other.num_running == LANES, "the requests are elsewhere")
    tokens = other.num_tokens
    await until(lambda: other.num_tokens > tokens, "the other server samples")
    elsewhere = time.perf_counter() - started
    if with_update:
        await served.publish()
        assert victim.state != "serving"
    await until(lambda: victim.state == "serving", "the server is back")
    back = time.perf_counter() - started
    error = await error_of(served, victim)
    return {
        "elsewhere": elsewhere, "back": back, "displaced": displaced, "with_update": with_update,
        "version": victim.version, "right": victim.version == served.version and error <= TOLERANCE, "error": error,
    }  # fmt: skip


def show_kill(row: dict[str, Any]) -> None:
    update = "new weights while down, " if row["with_update"] else ""
    print(
        f"  {row['displaced']} requests elsewhere after {row['elsewhere']:.2f} s, back after {row['back']:.1f} s, "
        f"{update}version {row['version']}, log-probabilities within {row['error']:.0e}",
        flush=True,
    )


async def measure(kind: str, kills: int) -> dict[str, Any]:
    load = ForeignLoad()
    started = time.perf_counter()
    async with serving(kind, "0.7M", num_slots=2 * LANES, num_servers=2) as served:
        both_start = time.perf_counter() - started
        await served.publish()
        rows = []
        async with busy_lanes(served.engine, LANES, served.vocab, OUTPUT_TOKENS):
            for number in range(kills):
                victim = served.engine.replicas[number % 2]
                rows.append(await kill(served, victim, served.engine.replicas[1 - number % 2], number % 2 == 1))
                show_kill(rows[-1])
        counters = served.engine.counters()
        foreign = load.cores
    return {
        "benchmark": "server_recovery",
        "engine": kind,
        "kills": rows,
        "elsewhere": max(row["elsewhere"] for row in rows),
        "back": max(row["back"] for row in rows),
        "both_start": both_start,
        "tokens_sampled_again": counters["tokens_sampled_again"],
        "right": all(row["right"] for row in rows),
        "foreign_cores": foreign,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--engine", choices=("vllm", "sglang"), default="vllm")
    parser.add_argument("--json", help="append one line of figures to this file")
    options = parser.parse_args()
    print(f"two {options.engine} servers, {LANES} requests in flight, one killed", flush=True)
    figures = asyncio.run(measure(options.engine, options.kills))
    print(f"  other programs                          {figures['foreign_cores']:5.2f} cores")
    print(f"  start of two at once with their model   {figures['both_start']:5.1f} s")
    print(f"  tokens sampled again                    {figures['tokens_sampled_again']:5.0f}")
    verdicts = []
    for name, asked, words in (("elsewhere", ASKED_ELSEWHERE, "requests run elsewhere"), ("back", ASKED_BACK, "back")):
        verdicts.append(figures[name] <= asked)
        print(f"  {words:<39} {figures[name]:5.2f} s   ask <= {asked:g} s   {'PASS' if verdicts[-1] else 'FAIL'}")
    verdicts.append(figures["right"])
    print(f"  right version and its weights           {'PASS' if figures['right'] else 'FAIL'}")
    append_json(options.json, {**figures, "passed": all(verdicts)})
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
