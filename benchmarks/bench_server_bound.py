"""Fraction of the bound that the quickstart reaches on a vLLM server, its terms measured alone.

    python benchmarks/bench_server_bound.py [--steps 100] [--rounds 2] [--json FILE] [OVERRIDE ...]

As ``bench_quickstart_bound.py``, with ``rollout=vllm``: one run (short warm start, staleness 2, no evaluations), then,
on the run's own server, with the run's own trainer and thread counts:

* ``train``: the batches of the steady steps are laid out, trained and staged again, and nothing else runs;
* ``generation``: a bare client in a process of its own sends the prompts of the same batches, as many at once as the
  run has in flight, and nothing else runs; an update's pause of the server, measured alone, is added to each step;
* ``rewards``: seconds of the reward function itself over the pool's processes.

The bound is the largest of the three: no schedule can be quicker than its busiest role. ``F = bound / step``. The
ceiling is what the busiest role keeps of its speed while the other one works without a pause. CPU time of the server
and of this process's event loop for each step say where the cores went.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import bare_client
import psutil
from bench_quickstart_bound import WINDOW, Parts, by_window, make_config, rollouts_alone, run_quickstart, train_alone
from serving import KEY_VARIABLE, ForeignLoad, append_json

from areal_x.engine.servers.server_engine import ServerEngine
from areal_x.trainer import roles
from areal_x.trainer.main import loop_factory
from areal_x.trainer.open_run import open_run

ASKED = 0.85
ALONE_SECONDS = 10.0


class Bare:
    """A bare client that keeps the server of a run busy."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self._last = (0.0, 0)

    async def requests_per_second(self) -> float:
        """Since this was asked before."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(b"now\n")
        at, answered = (await self._child.stdout.readline()).split()
        before, self._last = self._last, (float(at), int(answered))
        return (self._last[1] - before[1]) / (self._last[0] - before[0])


@contextlib.asynccontextmanager
async def bare_load(parts: Parts, folder: Path) -> AsyncIterator[Bare]:
    """A process that sends the prompts of the recorded steps again and again."""
    engine, config = parts.engine, parts.config
    assert isinstance(engine, ServerEngine)
    sampling = roles.sampling_params(config.rollout.sampling)
    steps = range(len(parts.recorded.groups))
    prompts = [request.input_ids.tolist() for step in steps for request in parts.recorded.requests(step, sampling)]
    work = folder / "work.json"
    work.write_text(
        json.dumps({
            "url": engine.replicas[0].client.base_url, "key": os.environ[KEY_VARIABLE], "prompts": prompts,
            "max_new_tokens": sampling.max_new_tokens, "forever": True,
            "in_flight": config.rollout.max_staleness * config.train.batch_size,
        })
    )  # fmt: skip
    child = await asyncio.create_subprocess_exec(
        sys.executable, bare_client.__file__, str(work), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        if (await child.stdout.readline()).strip() != b"ready":
            raise SystemExit("the bare client did not start")
        bare = Bare(child)
        await asyncio.sleep(2.0)
        await bare.requests_per_second()
        yield bare
    finally:
        child.stdin.close()
        await asyncio.wait_for(child.wait(), 30)


async def update_alone(parts: Parts) -> float:
    """Seconds for which an update stops the server, with nothing in flight."""
    engine = parts.engine
    assert isinstance(engine, ServerEngine)
    blocked = []
    for _ in range(WINDOW):
        parts.train_engine.version += 1
        await parts.weight_sync.stage(parts.train_engine.version)
        await parts.weight_sync.publish(parts.train_engine.version)
        blocked.append(engine.counters()["update_blocked_seconds"])
    return statistics.median(blocked)


def server_cpu_seconds() -> float:
    """CPU time so far of all processes of the server."""
    family = [process for process in psutil.Process().children(recursive=True) if _is_server(process)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in family))


def _is_server(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any("vllm" in word.lower() for word in process.cmdline())
    return False


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, milliseconds for each step."""
    os.environ.setdefault(KEY_VARIABLE, "a-key-of-the-benchmarks")
    trains, generations, trains_beside, generations_beside = [], [], [], []
    load = ForeignLoad()
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(temporary)
        overrides = ["rollout=vllm", f"rollout.server.api_key_env={KEY_VARIABLE}", *options.overrides]
        config = make_config(folder / "runs", options.steps, options.warm_steps, *overrides)
        async with open_run(config, options.steps) as run, AsyncExitStack() as stack:
            parts = await run_quickstart(run, stack, options.skip)
            update = await update_alone(parts)
            server_cpu = server_cpu_seconds()
            rollouts = await rollouts_alone(parts)
            server_cpu = (server_cpu_seconds() - server_cpu) / options.steps
            for _ in range(options.rounds):
                trains.append(await train_alone(parts))
                async with bare_load(parts, folder) as bare:
                    await asyncio.sleep(ALONE_SECONDS)
                    generations.append(config.train.batch_size / await bare.requests_per_second())
                    trains_beside.append(await train_alone(parts))
                    generations_beside.append(config.train.batch_size / await bare.requests_per_second())
            foreign = load.cores
    recorded = parts.recorded
    num_steps = len(recorded.seconds)
    train = statistics.median(map(statistics.mean, trains))
    train_beside = statistics.median(map(statistics.mean, trains_beside))
    generation = statistics.median(generations) + update
    generation_beside = statistics.median(generations_beside) + update
    rewards = statistics.mean(recorded.reward_seconds(step) for step in range(num_steps))
    rewards /= config.reward.num_workers or 2
    step = statistics.mean(recorded.seconds)
    bound = max(train, generation, rewards)
    ceiling = train / train_beside if train >= generation else generation / generation_beside
    return {
        "benchmark": "server_bound",
        "steps": num_steps,
        "step_ms": step * 1e3,
        "train_ms": train * 1e3,
        "generation_ms": generation * 1e3,
        "update_ms": update * 1e3,
        "rewards_ms": rewards * 1e3,
        "train_in_run_ms": statistics.mean(recorded.trained_seconds) * 1e3,
        "generation_in_run_ms": statistics.mean(recorded.generated_seconds) * 1e3,
        "rollouts_ms": rollouts * 1e3,
        "loop_cpu_ms": statistics.mean(recorded.loop_cpu_seconds) * 1e3,
        "server_cpu_ms": server_cpu * 1e3,
        "samples_per_second": config.train.batch_size / step,
        "busiest": "train" if train >= generation else "generation",
        "fractions_by_window": [bound / seconds for seconds in by_window(recorded.seconds)],
        "fraction_of_bound": bound / step,
        "ceiling": ceiling,
        "train_ceiling": train / train_beside,
        "generation_ceiling": generation / generation_beside,
        "fraction_of_ceiling": bound / step / ceiling,
        "foreign_cores": foreign,
        "passed": bound / step >= ASKED,
    }


def report(figures: dict[str, Any]) -> None:
    """Print all figures."""
    print(
        f"quickstart on vLLM, staleness 2, {figures['steps']} steady steps, {figures['samples_per_second']:.0f} "
        f"samples/s (other programs: {figures['foreign_cores']:.2f} cores)"
    )
    print(f"  step in the run                {figures['step_ms']:7.1f} ms")
    for name in ("train", "generation", "rewards"):
        inside = f"   (in the run {figures[f'{name}_in_run_ms']:.1f} ms)" if f"{name}_in_run_ms" in figures else ""
        print(f"  {name + ' alone':<30} {figures[f'{name}_ms']:7.1f} ms{inside}")
    print(f"  of which the update's pause    {figures['update_ms']:7.1f} ms")
    print(f"  event loop's CPU, in the run   {figures['loop_cpu_ms']:7.1f} ms")
    print(f"  step without training          {figures['rollouts_ms']:7.1f} ms   (generation and all that feeds it)")
    print(f"  the server's CPU in such a step{figures['server_cpu_ms']:7.1f} ms")
    windows = " ".join(f"{value:.2f}" for value in figures["fractions_by_window"])
    print(
        f"  two-process ceiling            {figures['ceiling']:7.3f}   of {figures['busiest']}, the busiest role "
        f"(train {figures['train_ceiling']:.3f}, generation {figures['generation_ceiling']:.3f})"
    )
    print(f"  F / ceiling                    {figures['fraction_of_ceiling']:7.3f}")
    print(f"  fraction of bound F            {figures['fraction_of_bound']:7.3f}   by window: {windows}")
    print(f"                                           ask >= {ASKED}   {'PASS' if figures['passed'] else 'FAIL'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--skip", type=int, default=40, help="first steps that are no steady state")
    parser.add_argument("--warm-steps", type=int, default=300, help="supervised steps before")
    parser.add_argument("--rounds", type=int, default=2, help="how often the terms are measured")
    parser.add_argument("--json", help="append one line of figures to this file")
    parser.add_argument("overrides", nargs="*", help="such as rollout.server.stream_interval=8")
    options = parser.parse_args()
    started = time.monotonic()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:  # That of a run.
        figures = runner.run(measure(options))
    report(figures)
    append_json(options.json, {**figures, "seconds": time.monotonic() - started})
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
