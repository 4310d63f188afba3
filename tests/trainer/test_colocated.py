"""Trainer and engine on one device take turns; and whether both fit it is known before they start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import Generator, PolicyFacts, TrainEngine
from areal_x.api.errors import ConfigError, EngineDiedError
from areal_x.api.records import FloatArray, ModelRequest, SamplingParams, TrainBatch, Trajectory
from areal_x.api.reward_records import RewardOutcome
from areal_x.api.server_checks import server_gpus
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.inference.scripted import ScriptedCompletion, ScriptedEngine
from areal_x.rollout.executor import RolloutExecutor
from areal_x.trainer.evaluations import Evaluations
from areal_x.trainer.memory_budget import check_memory_budget, trainer_bytes
from areal_x.trainer.step_clock import BusyTotals, StepClock
from areal_x.trainer.step_report import FinishedStep
from areal_x.trainer.trainer import Trainer
from areal_x.trainer.trainer_thread import TrainerThread

STEPS = 5


class DeviceEngine(ScriptedEngine):
    """A scripted engine that can sleep, and remembers what happened to it."""

    def __init__(self, events: list[str]) -> None:
        rng = np.random.default_rng(0)
        super().__init__(lambda request: ScriptedCompletion([1, 2, 3], 0.001 + 0.004 * rng.random()), num_slots=8)
        self.events = events
        self.asleep = False

    async def sleep(self) -> None:
        self.events.append("sleep")
        self.asleep = True
        await self.pause()

    async def update_weights(self, version: int) -> None:
        await super().update_weights(version)
        self.events.append(f"live {version}")
        self.asleep = False
        await self.resume()

    def counters(self) -> dict[str, float]:
        return {"servers_restarted": 2.0}


class DeviceTrainer(TrainEngine):
    """Learns nothing; sees whether the engine works meanwhile."""

    version = 0

    def __init__(self, engine: DeviceEngine) -> None:
        self.engine = engine

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        before = self.engine._num_tokens
        time.sleep(0.02)
        worked = self.engine._num_tokens - before
        self.engine.events.append(f"train{' asleep' if self.engine.asleep else ''}{' alone' if not worked else ''}")
        return {"train/loss": 0.0}

    def release_memory(self) -> None:
        self.engine.events.append("release")

    def accumulate(self, part: TrainBatch) -> None:
        time.sleep(0.002)

    def apply(self) -> dict[str, float]:
        self.engine.events.append("apply")
        return {}

    def discard(self) -> None: ...

    @property
    def facts(self) -> PolicyFacts:
        raise NotImplementedError

    def sft_step(self, batch: TrainBatch) -> dict[str, float]:
        raise NotImplementedError

    def reset_optimizer(self, learning_rate: float, schedule: str, warmup_steps: int, total_steps: int) -> None: ...

    def logprobs(self, batch: TrainBatch) -> FloatArray:
        raise NotImplementedError

    def named_weights(self) -> Iterator[Any]:
        return iter(())

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


class Sync:
    """Stages at once, publishes to the engine."""

    def __init__(self, engine: DeviceEngine) -> None:
        self.engine = engine

    async def stage(self, version: int) -> None:
        self.engine.events.append(f"stage {version}")

    async def publish(self, version: int) -> None:
        await asyncio.sleep(0.002)
        await self.engine.update_weights(version)


class Reports:
    """Keeps the finished steps."""

    def __init__(self) -> None:
        self.steps: list[FinishedStep] = []

    def add_span(self, lane: str, name: str, start: float, end: float) -> None:
        assert end >= start

    def report(self, finished: FinishedStep) -> None:
        self.steps.append(finished)


class OneSample(RolloutWorkflow):
    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory:
        response = await engine.agenerate(ModelRequest(np.array([data["n"]]), SamplingParams()))
        return Trajectory.from_response(response, RewardOutcome("ok", float(data["n"] % 2)))


def run_config(max_staleness: int, colocated: bool = True) -> ExperimentConfig:
    config = ExperimentConfig(name="run")
    config.rollout.colocated, config.rollout.max_staleness = colocated, max_staleness
    config.rollout.group_size, config.rollout.num_slots, config.rollout.max_length = 2, 8, 16
    config.train.batch_size, config.train.total_steps = 8, STEPS
    config.train.micro_batch_tokens = 32
    return config


async def train(config: ExperimentConfig) -> tuple[list[str], list[FinishedStep], RolloutExecutor]:
    events: list[str] = []
    engine, reports, thread = DeviceEngine(events), Reports(), TrainerThread()
    executor = RolloutExecutor(
        engine=engine,
        workflow=OneSample(),
        items=({"n": number} for number in range(10**6)),
        config=config.rollout,
        groups_per_step=config.groups_per_step,
    )

    async def evaluate(step: int, version: int, on_sampled: object) -> dict[str, float]:
        assert on_sampled is None or not config.rollout.colocated
        events.append(f"evaluate{' asleep' if engine.asleep else ''}")
        return {}

    trainer = Trainer(
        config,
        executor=executor,
        engine=engine,
        train_engine=DeviceTrainer(engine),
        weight_sync=Sync(engine),
        thread=thread,
        reporter=reports,  # type: ignore[arg-type]
        evaluations=Evaluations(config, evaluate),
    )
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        group.create_task(executor.run())
        await trainer.run()
        await executor.stop()
    thread.close()
    return events, reports.steps, executor


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
async def test_each_turn_ends_before_the_next_begins(max_staleness: int) -> None:
    config = run_config(max_staleness)
    config.evaluation.every_steps = 2
    events, steps, executor = await train(config)
    expected: list[str] = []
    for step in range(1, STEPS + 1):
        expected += ["sleep", "train asleep alone", "release", f"stage {step}", f"live {step}"]
        expected += ["evaluate"] if step % 2 == 0 else []
    assert events == expected
    assert [step.version for step in steps] == list(range(STEPS))
    for step in steps:
        samples = [trajectory for group in step.groups for trajectory in group.trajectories]
        assert len(samples) == 8 and all(trajectory.num_sampled == 3 for trajectory in samples)
        # Older tokens may be there, of a group that waited: they are masked.
        trained = np.concatenate([trajectory.versions[trajectory.loss_mask] for trajectory in samples])
        assert (step.version - trained <= max_staleness).all()
    executor.check_conservation()


async def test_engines_with_a_device_of_their_own_go_on() -> None:
    events, steps, _ = await train(run_config(2, colocated=False))
    assert not [event for event in events if event.startswith(("sleep", "train", "release", "evaluate"))]
    assert events.count("apply") == STEPS and len(steps) == STEPS


@pytest.mark.parametrize("colocated", [True, False])
async def test_an_update_and_the_engine_s_totals_are_metrics(colocated: bool) -> None:
    _, steps, _ = await train(run_config(1, colocated))
    metrics = steps[-1].metrics
    assert metrics["engine/servers_restarted"] == 2.0
    assert metrics["perf/publish_seconds"] >= 0.002 and metrics["perf/stage_seconds"] >= 0


async def test_a_trainer_that_fails_ends_the_run_though_the_engine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: DeviceTrainer, batch: TrainBatch) -> dict[str, float]:
        raise EngineDiedError("no memory")

    monkeypatch.setattr(DeviceTrainer, "train_step", fail)
    with pytest.raises(ExceptionGroup) as caught:
        await train(run_config(1))
    assert caught.group_contains(EngineDiedError, match="no memory")


def test_roles_that_take_turns_are_bound_by_their_sum() -> None:
    totals = BusyTotals(2.0, 1.0, 0.5)
    for takes_turns, expected in ((True, 0.75), (False, 0.5)):
        clock = StepClock(BusyTotals(0.0, 0.0, 0.0), takes_turns)
        metrics = clock.finish_step(totals, num_samples=1, wait_seconds=0.0)
        assert metrics["perf/fraction_of_bound"] == expected


def test_what_the_trainer_takes() -> None:
    found = trainer_bytes(1000, vocab_size=50, chunk_tokens=8, num_reference_parameters=1000)
    assert (found.parameters, found.gradients, found.moments, found.reference) == (4000, 4000, 8000, 4000)
    assert found.logits == 3 * 4 * 50 * 8
    assert found.training == 20000 + found.logits and found.resting == 16000
    assert trainer_bytes(1000, 50, 8).resting == 12000
    both = trainer_bytes(1000, 50, 8, staged=4000)
    assert (both.resting, both.training) == (16000, 20000 + both.logits)


def test_what_models_beside_the_policy_take_and_give_back() -> None:
    beside = {"num_reference_parameters": 1000, "num_critic_parameters": 2000}
    kept = trainer_bytes(1000, 50, 8, **beside)
    assert kept.resting == 12000 + 4000 + 3 * 8000
    # Gradients and logits of the policy (4000 and 4800) are more than gradients of the critic.
    assert kept.training == kept.resting + 8800
    moved = trainer_bytes(1000, 50, 8, **beside, moves_reference=True, moves_critic=True)
    assert moved.resting == 12000
    assert moved.training == 12000 + 4 * 8000
    config = run_config(1)
    large = trainer_bytes(15 * 10**8, 150_000, 1024, num_reference_parameters=15 * 10**8, num_critic_parameters=10**9)
    fix = r"critic and its Adam 11\.2 GiB.*, or use reference\.offload=true, or use critic\.offload=true"
    with pytest.raises(ConfigError, match=fix):
        check_memory_budget(config, large, 30 * 2**30)


def test_what_does_not_fit_one_device_is_refused_with_the_numbers() -> None:
    config = run_config(1)
    gib = 2**30
    trainer = trainer_bytes(15 * 10**8, vocab_size=150_000, chunk_tokens=1024)
    config.rollout.server.memory_fraction = 0.7
    check_memory_budget(config, trainer, 80 * gib)
    config.rollout.server.memory_fraction = 0.85
    with pytest.raises(ConfigError) as caught:
        check_memory_budget(config, trainer, 80 * gib)
    message = str(caught.value)
    assert "rollout.server.memory_fraction=0.85" in message and "\n" not in message
    for number in ("68.0 GiB", "16.8 GiB", "80.0 GiB", "use 0.77 or less"):
        assert number in message
    config.rollout.server.memory_fraction = 0.77
    check_memory_budget(config, trainer, 80 * gib)
    staged = trainer_bytes(15 * 10**8, 150_000, chunk_tokens=1024, staged=6 * 10**9)
    with pytest.raises(ConfigError, match=r"trainer's 22\.4 GiB \(parameters, .*, critic, staged weights\)"):
        check_memory_budget(config, staged, 80 * gib)
    with pytest.raises(ConfigError, match=r"a training step needs 24\.1 GiB .*device has 24\.0 GiB"):
        check_memory_budget(config, trainer, 24 * gib)


@pytest.mark.parametrize(
    ("device", "colocated", "servers", "num_ranks", "expected"),
    [
        ("auto", False, 1, 1, [1]),
        ("auto", False, 2, 1, [1, 2]),
        ("cuda:1", False, 2, 1, [0, 2]),
        ("auto", True, 1, 1, [0]),
        ("cuda:2", True, 2, 1, [2, 0]),
        ("auto", False, 2, 0, [0, 1]),
        ("auto", False, 2, 4, [4, 5]),
        ("cuda:1", False, 2, 2, [0, 3]),
    ],
)
def test_servers_leave_the_trainer_its_gpu(
    device: str, colocated: bool, servers: int, num_ranks: int, expected: list[int]
) -> None:
    config = run_config(1, colocated)
    config.model.device, config.rollout.server.num_servers = device, servers
    assert server_gpus(config.model, config.rollout, num_ranks) == expected
    config.rollout.server.gpus = [5, 4]
    assert server_gpus(config.model, config.rollout, num_ranks) == [5, 4]
