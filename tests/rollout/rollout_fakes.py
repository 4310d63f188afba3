"""Small workflows and drivers that the rollout tests share."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from areal_x.api.config import RolloutConfig
from areal_x.api.engine_api import Generator
from areal_x.api.records import ModelRequest, SamplingParams, Trajectory
from areal_x.api.reward_api import RewardOutcome
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.inference.scripted import ScriptedCompletion, ScriptedEngine
from areal_x.rollout.executor import RolloutExecutor

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_async_vs_sync.py"
spec = importlib.util.spec_from_file_location("bench_async_vs_sync", BENCHMARK)
assert spec is not None and spec.loader is not None
bench = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = bench  # dataclasses look their module up
spec.loader.exec_module(bench)


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop whose clock jumps to the next timer, so that no stall of the machine is in its times."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        bench.simulate(test(*args, **kwargs))

    return run


class CountingWorkflow(RolloutWorkflow):
    """Generates once; ``outcome_of(data)`` scores."""

    def __init__(self, outcome_of: Callable[[dict[str, Any]], RewardOutcome] | None = None) -> None:
        self.outcome_of = outcome_of or (lambda data: RewardOutcome("ok", 1.0))

    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory | list[Trajectory] | None:
        response = await engine.agenerate(ModelRequest(np.array([1, data["n"]]), SamplingParams()))
        return Trajectory.from_response(response, self.outcome_of(data))


def numbered_items(stop: int | None = None) -> Iterator[dict[str, Any]]:
    number = 0
    while stop is None or number < stop:
        yield {"n": number}
        number += 1


def random_script(
    seed: int, mean_seconds: float = 0.002, sigma: float = 1.0
) -> Callable[[ModelRequest], ScriptedCompletion]:
    rng = np.random.default_rng(seed)

    def script(request: ModelRequest) -> ScriptedCompletion:
        length = int(np.ceil(10 * rng.lognormal(-(sigma**2) / 2, sigma)))
        return ScriptedCompletion(np.arange(length), length * mean_seconds / 10)

    return script


def make_executor(
    engine: ScriptedEngine | None = None,
    workflow: RolloutWorkflow | None = None,
    items: Iterator[dict[str, Any]] | None = None,
    groups_per_step: int = 4,
    **options: Any,
) -> RolloutExecutor:
    config_fields = {name: options.pop(name) for name in list(options) if name in RolloutConfig.__dataclass_fields__}
    return RolloutExecutor(
        engine=engine or ScriptedEngine(random_script(0)),
        workflow=workflow or CountingWorkflow(),
        items=numbered_items() if items is None else items,
        config=RolloutConfig(**{"group_size": 2, "max_staleness": 2, **config_fields}),
        groups_per_step=groups_per_step,
        **options,
    )


@asynccontextmanager
async def running(executor: RolloutExecutor) -> Any:
    """Run the executor in the background; its error, if any, is the test's business through ``next_batch``."""
    task = asyncio.create_task(executor.run())
    try:
        yield task
    finally:
        await executor.stop()
        with suppress(BaseException):
            await task
