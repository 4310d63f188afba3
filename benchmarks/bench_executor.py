"""CPU that the rollout executor takes for one episode, above the same coroutines in a bare TaskGroup.

    python benchmarks/bench_executor.py [--json FILE]

10,000 episodes (groups of 8) are in flight at once: each waits in the engine until all have arrived, then all are
released. Both sides run the same workflow on the same fake engine and the same loop; the bare side is
``TaskGroup.create_task`` for each episode and nothing else. CPU time of the process is compared; both sides are
warmed, alternate, and the median of the differences counts. The executor's side includes everything it does:
admission, deadlines, groups, counts, masking, consumption.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from areal_x.api.config import RolloutConfig
from areal_x.api.engine_api import EngineHealth, Generator, InferenceEngine
from areal_x.api.records import ModelRequest, ModelResponse, Trajectory, VersionSpan
from areal_x.api.reward_api import RewardOutcome
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.rollout.executor import RolloutExecutor

GROUP_SIZE = 8
ASK_MICROSECONDS = 20.0
PROMPT = np.array([1, 2, 3], dtype=np.int32)
OUTPUT = np.arange(20, dtype=np.int32)
LOGPROBS = np.zeros(20, dtype=np.float32)


class Gate(InferenceEngine):
    """Answers nobody until ``num_expected`` requests are in flight, then everybody."""

    def __init__(self, num_expected: int) -> None:
        self.num_expected = num_expected
        self.num_arrived = 0
        self.opened = asyncio.get_running_loop().create_future()

    async def start(self) -> None: ...

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        self.num_arrived += 1
        answer = asyncio.get_running_loop().create_future()
        self.opened.add_done_callback(lambda _: answer.set_result(None))
        if self.num_arrived == self.num_expected:
            self.opened.set_result(None)
        await answer
        return ModelResponse(request.request_id, request.input_ids, OUTPUT, LOGPROBS, [VersionSpan(0, 20, 0)], "stop")

    async def update_weights(self, version: int) -> None: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def health(self) -> EngineHealth:
        return EngineHealth(True, 0, 0, 0, 0)

    async def close(self) -> None: ...


class OneTurn(RolloutWorkflow):
    """Generate, score at once."""

    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory:
        response = await engine.agenerate(ModelRequest(PROMPT))
        return Trajectory.from_response(response, RewardOutcome("ok", 1.0))


async def bare(num_episodes: int) -> float:
    engine, workflow = Gate(num_episodes), OneTurn()
    item = {"question": "1 + 1", "answer": "2"}
    started = time.process_time()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(workflow.arun_episode(engine, dict(item))) for _ in range(num_episodes)]
    total = sum(len(task.result().input_ids) for task in tasks)
    seconds = time.process_time() - started
    assert total == num_episodes * 23
    return seconds


async def through_executor(num_episodes: int) -> float:
    engine = Gate(num_episodes)
    num_groups = num_episodes // GROUP_SIZE
    item = {"question": "1 + 1", "answer": "2"}
    executor = RolloutExecutor(
        engine=engine,
        workflow=OneTurn(),
        items=(item for _ in range(num_groups)),
        config=RolloutConfig(group_size=GROUP_SIZE, max_staleness=1, num_slots=num_episodes),
        groups_per_step=num_groups,
    )
    started = time.process_time()
    run = asyncio.create_task(executor.run())
    groups = await executor.next_batch(0)
    await executor.stop()
    await run
    total = sum(len(trajectory.input_ids) for group in groups for trajectory in group.trajectories)
    seconds = time.process_time() - started
    assert total == num_episodes * 23
    assert executor.counts.trained == num_episodes
    return seconds


def measure(
    name: str, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None, num_episodes: int, repeats: int
) -> Any:
    bare_seconds, executor_seconds = [], []
    for repeat in range(repeats + 1):
        for side, results in ((bare, bare_seconds), (through_executor, executor_seconds)):
            gc.collect()
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                seconds = runner.run(side(num_episodes))
            if repeat:  # the first pass warms both sides
                results.append(seconds)
    microseconds = 1e6 / num_episodes
    above = statistics.median(b - a for a, b in zip(bare_seconds, executor_seconds, strict=True)) * microseconds
    base = statistics.median(bare_seconds) * microseconds
    verdict = "PASS" if above <= ASK_MICROSECONDS else "FAIL"
    print(
        f"{name}, {num_episodes} concurrent: bare TaskGroup {base:.1f} us an episode, executor "
        f"{statistics.median(executor_seconds) * microseconds:.1f} us: {above:.1f} us above "
        f"(asked <= {ASK_MICROSECONDS:g}): {verdict}"
    )
    return {"loop": name, "episodes": num_episodes, "bare_us": base, "above_us": above, "passed": verdict == "PASS"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure("asyncio", None, options.episodes, options.repeats)]
    if importlib.util.find_spec("uvloop"):
        import uvloop

        results.append(measure("uvloop", uvloop.new_event_loop, options.episodes, options.repeats))
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps({"benchmark": "executor", "results": results}) + "\n")


if __name__ == "__main__":
    main()
