"""Asynchronous against synchronous rollouts, in wall-clock time, on a scripted engine.

    python benchmarks/bench_async_vs_sync.py [--json FILE]

B = K = 256 samples and slots, lognormal lengths (sigma 1.0), staleness 4, at least 60 steps. The trainer is balanced:
one step takes the mean time that the engine needs for a step's samples. It trains in parts of eight samples, with the
policy of the real trainer, and takes each part when it can start on it, so a sample that finishes during a step can
still join it. A trainer that takes whole batches is measured too, for information: its samples wait for the step's
beginning, which costs tokens.

The synchronous side is the same code at ``max_staleness=0``, with the full batch in flight.

Figures, for groups of 1 and of 8:

* speed-up over the synchronous mode, and its share of S_max = sum over steps of (longest + T) / sum over steps of
  max(mean generation, T), computed from the lengths drawn;
* trained tokens within the bound, checked here token by token;
* masked tokens and wholly masked samples, over the least possible: tokens older than (staleness + 1) steps when their
  group is complete, each sample and its group taken as if they started together at the best moment and never waited.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from areal_x.api.config import RolloutConfig
from areal_x.api.engine_api import Generator
from areal_x.api.records import ModelRequest, Trajectory, TrajectoryGroup
from areal_x.api.reward_api import RewardOutcome
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.inference.scripted import ScriptedCompletion, ScriptedEngine
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.parts import max_ready_groups

BATCH = SLOTS = 256
SIGMA = 1.0
STALENESS = 4
PART_SAMPLES = 4
"""What the trainer takes at a time by default with ``train.micro_batch_tokens=16384, rollout.max_length=4096``."""
MEAN_TOKENS = 100
ASK_SPEED, ASK_MASKED = 0.93, 1.2
PROMPT = np.array([1], dtype=np.int32)


class OneTurn(RolloutWorkflow):
    """Generate, score at once."""

    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory:
        response = await engine.agenerate(ModelRequest(PROMPT))
        return Trajectory.from_response(response, RewardOutcome("ok", 1.0))


@dataclass(repr=False)
class Measured:
    """One run: mean seconds of a step in the window, and what was trained on which version.

    Without a repr: ``asyncio.run`` makes one of whatever it returns.
    """

    step_seconds: float
    steps: list[tuple[int, list[TrajectoryGroup]]]
    masked_tokens: int
    wholly_masked: int


def draw_lengths(num_samples: int, seed: int) -> np.ndarray:
    """Tokens of each sample, int64 [num_samples], lognormal with mean ``MEAN_TOKENS``."""
    draws = np.random.default_rng(seed).lognormal(-(SIGMA**2) / 2, SIGMA, num_samples)
    return np.ceil(MEAN_TOKENS * draws).astype(np.int64)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it. ``time.monotonic`` follows."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        self._now = 0.0
        wait = selector.select

        def jump(timeout: float | None = None) -> Any:
            self._now += timeout or 0.0
            return wait(0)

        selector.select = jump  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return self._now


def simulate(main: Coroutine[Any, Any, Measured]) -> Measured:
    """Run ``main`` in virtual time: what the schedule alone gives, whatever else the machine does."""
    monotonic = time.monotonic
    loop = VirtualTimeLoop()
    time.monotonic = loop.time
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(main)
    finally:
        time.monotonic = monotonic


async def sleep_until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


async def run(
    lengths: np.ndarray, token_seconds: float, group_size: int, staleness: int, steps: int, warm: int, parts: bool
) -> Measured:
    """Train ``warm + steps`` steps; the figures are those of the last ``steps``."""
    output_ids = np.zeros(int(lengths.max()), dtype=np.int32)

    def script(request: ModelRequest) -> ScriptedCompletion:
        group, index = (request.session_id or "").split("-")
        length = lengths[int(group) * group_size + int(index)]
        return ScriptedCompletion(output_ids[:length], length * token_seconds)

    engine = ScriptedEngine(script, SLOTS)
    groups_per_step = BATCH // group_size
    groups_per_part = max(1, PART_SAMPLES // group_size) if parts and staleness else groups_per_step
    executor = RolloutExecutor(
        engine=engine,
        workflow=OneTurn(),
        items=({"n": number} for number in range(len(lengths) // group_size)),
        config=RolloutConfig(group_size=group_size, max_staleness=staleness, num_slots=SLOTS),
        groups_per_step=groups_per_step,
        max_ready_groups=max_ready_groups(groups_per_part, groups_per_step),
    )
    train_seconds = float(lengths[: steps * BATCH].mean()) * token_seconds * BATCH / SLOTS
    trained: list[tuple[int, list[TrajectoryGroup]]] = []
    window_start = 0.0
    producer = asyncio.create_task(executor.run())
    clock = time.monotonic()
    for version in range(warm + steps):
        if version == warm:
            window_start = clock
            executor.take_over_age()
        left = groups_per_step
        while left:
            part = min(left, groups_per_part)
            asked = time.monotonic()
            groups = await executor.next_groups(part, part, version)
            # The trainer works without a break while there is work: timers that fire late are not its time.
            clock = max(clock, time.monotonic()) if time.monotonic() - asked > 1e-3 else clock
            clock += train_seconds * len(groups) / groups_per_step
            left -= len(groups)
            trained.append((version, groups))
            await sleep_until(clock)
        await engine.update_weights(version + 1)
        executor.on_published(version + 1)
    seconds = clock - window_start
    over_age = executor.take_over_age()
    await executor.stop()
    await producer
    window = [(version, groups) for version, groups in trained if version >= warm]
    return Measured(seconds / steps, window, over_age.num_masked_tokens, over_age.num_wholly_masked_samples)


def tokens_out_of_bound(measured: Measured, staleness: int) -> tuple[int, int]:
    """Trained tokens, and those of them that are too old: an own count, from the version of each token."""
    num_trained = num_old = 0
    for version, groups in measured.steps:
        for group in groups:
            for trajectory in group.trajectories:
                lags = version - trajectory.versions[trajectory.loss_mask]
                num_trained += len(lags)
                num_old += int((lags > staleness).sum())
    return num_trained, num_old


def least_masked(measured: Measured, step_tokens: float) -> tuple[float, int, int]:
    """The least possible masked tokens and wholly masked samples, and all sampled tokens; a step is ``step_tokens``."""
    tokens, samples, total = 0.0, 0, 0
    for _, groups in measured.steps:
        for group in groups:
            sizes = np.array([len(trajectory.input_ids) - len(PROMPT) for trajectory in group.trajectories])
            masked = np.minimum(sizes, max(0.0, sizes.max() - (STALENESS + 1) * step_tokens))
            tokens += masked.sum()
            samples += int((masked >= sizes).sum())
            total += int(sizes.sum())
    return tokens, samples, total


def sampled_tokens(measured: Measured) -> int:
    groups = (group for _, groups in measured.steps for group in groups)
    return sum(len(trajectory.input_ids) - len(PROMPT) for group in groups for trajectory in group.trajectories)


def report_masking(name: str, measured: Measured, step_tokens: float) -> dict[str, float]:
    num_trained, num_old = tokens_out_of_bound(measured, STALENESS)
    least_tokens, least_samples, total = least_masked(measured, step_tokens)
    token_ratio = measured.masked_tokens / max(least_tokens, 1.0)
    sample_ratio = measured.wholly_masked / max(least_samples, 1)
    print(
        f"  {name}: masked tokens {measured.masked_tokens / total:.2%} (least {least_tokens / total:.2%}, "
        f"ratio {token_ratio:.3f}); wholly masked samples {measured.wholly_masked} (least {least_samples}, "
        f"ratio {sample_ratio:.3f}); trained tokens out of bound {num_old} of {num_trained}"
    )
    return {"masked_ratio": token_ratio, "wholly_masked_ratio": sample_ratio, "out_of_bound": float(num_old)}


def measure(group_size: int, options: argparse.Namespace) -> dict[str, float]:
    steps, warm = options.steps, options.warm
    lengths = draw_lengths((warm + steps + STALENESS + 2) * BATCH, options.seed)
    token_seconds = options.mean_seconds / MEAN_TOKENS
    used = lengths[: steps * BATCH].reshape(steps, BATCH)
    step_tokens = float(used.mean()) * BATCH / SLOTS
    synchronous_tokens = float((used.max(axis=1) + step_tokens).mean())
    print(f"groups of {group_size}:")
    play = simulate if options.virtual else asyncio.run
    asynchronous = play(run(lengths, token_seconds, group_size, STALENESS, steps, warm, parts=True))
    whole = play(run(lengths, token_seconds, group_size, STALENESS, steps, warm, parts=False))
    synchronous = (
        whole if options.skip_sync else play(run(lengths, token_seconds, group_size, 0, steps, 0, parts=False))
    )
    results = {"group_size": float(group_size)}
    for name, measured in (("trainer in parts", asynchronous), ("whole batches", whole)):
        speed_up = synchronous.step_seconds / measured.step_seconds
        # The slower of the two bounds the asynchronous side: the engine with the lengths that it got, or the trainer.
        s_max = synchronous_tokens / max(sampled_tokens(measured) / SLOTS / steps, step_tokens)
        print(
            f"  {name}: {measured.step_seconds * 1e3:.1f} ms a step, "
            f"synchronous {synchronous.step_seconds * 1e3:.1f} ms: "
            f"speed-up {speed_up:.2f} = {speed_up / s_max:.3f} of the S_max of the lengths drawn, {s_max:.2f}"
        )
        ratios = report_masking(name, measured, step_tokens)
        prefix = "" if measured is asynchronous else "whole_"
        results |= {prefix + "s_max": s_max, prefix + "speed_up": speed_up, prefix + "share_of_s_max": speed_up / s_max}
        results |= {prefix + key: value for key, value in ratios.items()}
    passed = (
        results["share_of_s_max"] >= ASK_SPEED
        and results["masked_ratio"] <= ASK_MASKED
        and results["wholly_masked_ratio"] <= ASK_MASKED
        and results["out_of_bound"] == 0
        and results["whole_out_of_bound"] == 0
    )
    results["passed"] = float(passed)
    print(
        f"  asked: >= {ASK_SPEED} of S_max, masked <= {ASK_MASKED} x least, none out of bound: "
        f"{'PASS' if passed else 'FAIL'}"
    )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warm", type=int, default=15)
    parser.add_argument("--mean-seconds", type=float, default=0.08)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--skip-sync", action="store_true")
    parser.add_argument("--virtual", action="store_true", help="simulate the clock: the schedule without the machine")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure(group_size, options) for group_size in options.groups]
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps({"benchmark": "async_vs_sync", "results": results}) + "\n")


if __name__ == "__main__":
    main()
