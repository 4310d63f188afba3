"""Fraction of the bound that the quickstart reaches in steady state, its terms measured alone.

    python benchmarks/bench_quickstart_bound.py [--steps 120] [--rounds 3] [--json FILE]

One run of the quickstart (short warm start, staleness 2, no evaluations) gives the wall clock of its steady steps and
records the batches that they trained. Then, with nothing else running:

* ``train``: the same batches are laid out, trained and staged again by the run's own trainer (same thread count);
* ``generation``: the run's own engine answers the requests of the same batches, so many in flight as in the run, and
  takes new weights as often;
* ``rewards``: seconds of the reward function itself over the pool's processes.

Not part of the bound, but printed beside it: the event loop's CPU time for each step of the run (workflows, executor,
reward calls, reports), and the step of the same loop with a trainer that does nothing, which is generation with
everything that feeds it.

The bound is the largest of the three, for the same steps: no schedule can be quicker than its busiest role, and
``F = bound / step``. Two busy processes slow each other down (caches, memory, clocks), so the reachable part of the
bound is measured, too: another process generates the same requests without a pause while this one trains; the ceiling
is the busiest role's time alone over its time then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.records import ModelRequest, SamplingParams, TrainBatch, TrajectoryGroup
from areal_x.engine.weights import StagedSync
from areal_x.launch.compose import ConfigSource, compose_config
from areal_x.rollout.data_stream import DataStream
from areal_x.trainer import roles, session
from areal_x.trainer.checkpointer import Checkpointer
from areal_x.trainer.evaluation import Evaluator
from areal_x.trainer.evaluation_sets import make_evaluation_sets
from areal_x.trainer.main import loop_factory
from areal_x.trainer.open_run import Run, open_run
from areal_x.trainer.session_parts import make_evaluator, save_policy
from areal_x.trainer.session_state import make_checkpointer, make_store
from areal_x.trainer.step_report import FinishedStep, StepReporter
from areal_x.trainer.trainer import Trainer
from areal_x.trainer.trainer_thread import TrainerThread

ASKED = 0.90
WINDOW = 20


@dataclass
class Recorded:
    """What the steady steps of the run did: one entry for each step."""

    groups: list[list[TrajectoryGroup]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    trained_seconds: list[float] = field(default_factory=list)
    generated_seconds: list[float] = field(default_factory=list)
    scored_seconds: list[float] = field(default_factory=list)
    """Of reward models."""
    loop_cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of the event loop's thread."""

    def reward_seconds(self, step: int) -> float:
        """Time inside the reward function for the samples of one step."""
        outcomes = [trajectory.outcome for group in self.groups[step] for trajectory in group.trajectories]
        return sum(outcome.seconds for outcome in outcomes if outcome is not None)

    def requests(self, step: int, sampling: SamplingParams) -> list[ModelRequest]:
        """The requests whose answers one step trained."""
        return [
            ModelRequest(trajectory.input_ids[: int(np.argmax(trajectory.loss_mask))], sampling)
            for group in self.groups[step]
            for trajectory in group.trajectories
        ]


class NoTraining:
    """A train engine that takes no time."""

    def __init__(self, version: int) -> None:
        self.version = version

    def accumulate(self, batch: TrainBatch) -> None:
        """Drop the batch."""

    def apply(self) -> dict[str, float]:
        """Change nothing."""
        return {}

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """Change nothing."""
        return {}

    def discard(self) -> None:
        """Nothing is kept."""


class StepTimes:
    """A reporter that keeps step times and shows nothing."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def add_span(self, lane: str, name: str, start: float, end: float) -> None:
        """Spans are not kept."""

    def report(self, finished: FinishedStep) -> None:
        """Keep the time."""
        self.seconds.append(finished.metrics["perf/step_seconds"])


class RecordingReporter:
    """Has the run's own reporter report, and keeps what the steps after the first ``skip`` ones did."""

    def __init__(self, recorded: Recorded, skip: int, reporter: StepReporter) -> None:
        self.recorded, self.skip, self.reporter = recorded, skip, reporter
        self.loop_cpu = time.thread_time()

    def add_span(self, lane: str, name: str, start: float, end: float) -> None:
        """See ``StepReporter.add_span``."""
        self.reporter.add_span(lane, name, start, end)

    def report(self, finished: FinishedStep) -> None:
        """See ``StepReporter.report``."""
        before, self.loop_cpu = self.loop_cpu, time.thread_time()
        if finished.step > self.skip:
            self.recorded.groups.append(finished.groups)
            self.recorded.seconds.append(finished.metrics["perf/step_seconds"])
            self.recorded.trained_seconds.append(finished.metrics["perf/train_seconds"])
            self.recorded.scored_seconds.append(finished.metrics.get("perf/reward_model_seconds", 0.0))
            self.recorded.loop_cpu_seconds.append(self.loop_cpu - before)
            self.recorded.generated_seconds.append(finished.metrics["perf/generation_seconds"])
        self.reporter.report(finished)


def make_config(folder: Path, steps: int, warm_steps: int, *overrides: str) -> ExperimentConfig:
    """The quickstart without evaluations, checkpoints and pictures, but for what ``overrides`` say."""
    return compose_config(
        ConfigSource.named("quickstart"),
        [
            f"runs_dir={folder}",
            f"train.total_steps={steps}",
            f"sft.steps={warm_steps}",
            "evaluation.every_steps=0",
            "checkpoint.every_steps=0",
            "observe.report=false",
            "observe.progress=false",
            *overrides,
        ],
    )


@dataclass
class Parts:
    """The run's own roles, still alive after it."""

    run: Run
    trainer: Trainer
    models: session.Models
    rewards: session.Rewards
    evaluator: Evaluator
    recorded: Recorded
    reporter: StepReporter

    @property
    def config(self) -> ExperimentConfig:
        return self.run.config

    @property
    def thread(self) -> TrainerThread:
        return self.run.thread

    @property
    def train_engine(self) -> Any:
        return self.models.train_engine

    @property
    def engine(self) -> InferenceEngine:
        return self.models.engine

    @property
    def weight_sync(self) -> StagedSync:
        return self.models.weight_sync


async def run_quickstart(run: Run, stack: AsyncExitStack, skip: int) -> Parts:
    """The session of ``areal-x train``, with a reporter that keeps the batches."""
    config = run.config
    rewards = await session.start_rewards(run, stack)
    models = await session.load_models(run, rewards, stack)
    await session.start_engine(run, models)
    train_engine = models.train_engine
    await models.weight_sync.stage(train_engine.version)
    await models.weight_sync.publish(train_engine.version)
    sets = make_evaluation_sets(config, run.data.held_out, rewards.evaluation, models.tokenizer, run.given)
    evaluator = make_evaluator(run, models.engine, sets, models.reward_models)
    trainer = session.make_trainer(run, rewards, models, evaluator, make_store(run, models.path))
    recorded, reporter = Recorded(), trainer.reporter
    trainer.reporter = RecordingReporter(recorded, skip, reporter)  # type: ignore[assignment]
    await session.train_while_rolling_out(trainer, trainer.executor)
    save_policy(run, train_engine, models.tokenizer)
    return Parts(run, trainer, models, rewards, evaluator, recorded, reporter)


async def publish(parts: Parts) -> None:
    """New weights for the engine."""
    parts.train_engine.version += 1
    await parts.weight_sync.stage(parts.train_engine.version)
    await parts.weight_sync.publish(parts.train_engine.version)


async def train_alone(parts: Parts) -> list[float]:
    """Seconds of all trainer work of each recorded step: reward models, the step with all models that it asks, staging
    the weights, and where the run takes checkpoints, theirs."""
    seconds, trainer, checkpointer = [], parts.trainer, new_checkpointer(parts)
    first = parts.config.train.total_steps + 1
    async with asyncio.TaskGroup() as group:
        for step, groups in enumerate(parts.recorded.groups, start=first):
            started = time.perf_counter()
            if trainer.reward_models is not None:
                await trainer.reward_models.score(groups)
            await parts.thread.call(trainer.policy_step.take, step, groups, True)
            parts.train_engine.version += 1
            await parts.weight_sync.stage(parts.train_engine.version)
            checkpointer.on_step_trained()
            if checkpointer.is_due(step):
                await checkpointer.begin(step, parts.train_engine.version, group, lambda: None)
            seconds.append(time.perf_counter() - started)
        await checkpointer.finish()
    return seconds


def new_checkpointer(parts: Parts) -> Checkpointer:
    """As the run's own, which ended with the run."""
    run, models = parts.run, parts.models
    return make_checkpointer(
        run,
        make_store(run, models.path),
        models.states,
        model_path=models.path,
        tokenizer=models.tokenizer,
        train_engine=models.train_engine,
        executor=parts.trainer.executor,
        stream=DataStream(run.data.train, seed=parts.config.seed, shuffle=parts.config.data.shuffle),
        reporter=parts.reporter,
    )


async def generate(engine: InferenceEngine, steps: list[list[ModelRequest]], ahead: int) -> list[float]:
    """Seconds between the ends of consecutive steps' requests, ``ahead`` steps' worth in flight."""
    ends: list[float] = []
    waiting: list[asyncio.Future[list[Any]]] = []
    started = time.perf_counter()
    for requests in steps:
        waiting.append(asyncio.gather(*map(engine.agenerate, requests)))
        if len(waiting) > ahead:
            await waiting.pop(0)
            ends.append(time.perf_counter())
    for step in waiting:
        await step
        ends.append(time.perf_counter())
    return np.diff([started, *ends]).tolist()


async def generate_alone(parts: Parts) -> list[float]:
    """Busy seconds of the engine for each recorded step, its weight update and its share of an evaluation included;
    nothing else runs."""
    sampling = roles.sampling_params(parts.config.rollout.sampling)
    steps = [parts.recorded.requests(step, sampling) for step in range(len(parts.recorded.groups))]
    before = (await parts.engine.health()).busy_seconds
    await generate(parts.engine, steps, parts.config.rollout.max_staleness)
    busy = ((await parts.engine.health()).busy_seconds - before) / len(steps)
    updates = []
    for _ in steps[:WINDOW]:
        await publish(parts)
        updates.append(parts.engine.last_update.blocked_seconds)  # type: ignore[attr-defined]
    return [busy + statistics.median(updates) + await evaluate_alone(parts)] * len(steps)


async def evaluate_alone(parts: Parts) -> float:
    """Busy seconds of the engine for an evaluation, for each step between two of them; 0 without any."""
    every = parts.config.evaluation.every_steps
    if not every:
        return 0.0
    before = (await parts.engine.health()).busy_seconds
    await parts.evaluator.evaluate(parts.config.train.total_steps, parts.train_engine.version)
    return ((await parts.engine.health()).busy_seconds - before) / every


async def rollouts_alone(parts: Parts) -> float:
    """Seconds of a step of the whole loop with a trainer that does nothing, without evaluations and checkpoints."""
    config, times = parts.config, StepTimes()
    config = replace(
        config,
        evaluation=replace(config.evaluation, every_steps=0),
        checkpoint=replace(config.checkpoint, every_steps=0),
        algorithm=replace(config.algorithm, kl_coefficient=0.0),
    )
    run, idle = replace(parts.run, config=config), NoTraining(parts.train_engine.version)
    models: Any = replace(parts.models, train_engine=idle)  # type: ignore[arg-type]
    trainer = session.make_trainer(run, parts.rewards, models, parts.evaluator, make_store(run, parts.models.path))
    trainer.reporter = times  # type: ignore[assignment]
    await session.train_while_rolling_out(trainer, trainer.executor)
    parts.train_engine.version = idle.version
    return statistics.mean(times.seconds[WINDOW:])


async def side_by_side(parts: Parts, model: Path, folder: Path) -> tuple[list[float], float]:
    """Train seconds of each step and mean busy seconds of generation while both work without a pause."""
    sampling = roles.sampling_params(parts.config.rollout.sampling)
    prompts = [request.input_ids.tolist() for request in parts.recorded.requests(0, sampling)]
    work = folder / "requests.json"
    config = parts.config.rollout
    work.write_text(
        json.dumps({
            "model": str(model), "prompts": prompts, "num_slots": config.num_slots, "max_length": config.max_length,
            "num_threads": config.num_threads, "max_new_tokens": config.sampling.max_new_tokens,
            "ahead": config.max_staleness,
        })
    )  # fmt: skip
    words = [sys.executable, __file__, "--generate", str(work)]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    try:
        if child.stdout.readline().strip() != "generating":
            raise SystemExit("the generating process did not start")
        child.stdin.write("begin\n")
        child.stdin.flush()
        trained = await train_alone(parts)
        child.stdin.write("end\n")
        child.stdin.flush()
        generated = float(child.stdout.readline())
    finally:
        child.stdin.close()
        child.wait(20)
    return trained, generated


async def generate_until_told(work: dict[str, Any]) -> None:
    """The second process: generates without a pause, and says how long a step's requests kept its engine busy."""
    from areal_x.engine.inference import EmbeddedEngine

    engine = EmbeddedEngine(
        work["model"], num_slots=work["num_slots"], max_length=work["max_length"], num_threads=work["num_threads"]
    )
    await engine.start()
    try:
        sampling = SamplingParams(max_new_tokens=work["max_new_tokens"])
        requests = [ModelRequest(np.array(prompt, np.int32), sampling) for prompt in work["prompts"]]
        finished = 0

        async def keep_busy() -> None:
            nonlocal finished
            while True:
                await asyncio.gather(*map(engine.agenerate, requests))
                finished += 1

        async with asyncio.TaskGroup() as group:
            lanes = [group.create_task(keep_busy()) for _ in range(work["ahead"])]
            print("generating", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            before, busy_before = finished, (await engine.health()).busy_seconds
            await asyncio.to_thread(sys.stdin.readline)
            busy = (await engine.health()).busy_seconds - busy_before
            print(busy / max(1, finished - before), flush=True)
            for lane in lanes:
                lane.cancel()
    finally:
        await engine.close()


def by_window(values: list[float]) -> list[float]:
    """Means of consecutive windows of steps: single steps borrow from their neighbours."""
    return [statistics.mean(values[i : i + WINDOW]) for i in range(0, len(values) - WINDOW + 1, WINDOW)]


async def measure(
    steps: int,
    rounds: int,
    warm_steps: int,
    skip: int,
    *,
    name: str = "quickstart_bound",
    asked: float = ASKED,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """All figures, milliseconds for each step; ``overrides`` change the run."""
    trains, generations, train_beside, generate_beside = [], [], [], []
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(temporary)
        config = make_config(folder / "runs", steps, warm_steps, *overrides)
        async with open_run(config, steps) as run, AsyncExitStack() as stack:
            parts = await run_quickstart(run, stack, skip)
            rollouts = await rollouts_alone(parts)
            for _ in range(rounds):
                trains.append(await train_alone(parts))
                generations.append(await generate_alone(parts))
                trained, generated = await side_by_side(parts, run.directory / "policy", folder)
                train_beside.append(trained)
                generate_beside.append(generated)
    recorded = parts.recorded
    num_steps = len(recorded.seconds)
    train = np.median(trains, axis=0).tolist()
    generation = np.median(generations, axis=0).tolist()
    rewards = [recorded.reward_seconds(step) / (config.reward.num_workers or 2) for step in range(num_steps)]
    terms = list(zip(by_window(train), by_window(generation), by_window(rewards), strict=True))
    fractions = [max(of) / step for of, step in zip(terms, by_window(recorded.seconds), strict=True)]
    train_ceiling = statistics.median(
        sum(alone) / sum(beside) for alone, beside in zip(trains, train_beside, strict=True)
    )
    generation_ceiling = statistics.median(
        statistics.mean(alone) / beside for alone, beside in zip(generations, generate_beside, strict=True)
    )
    trainer_is_busiest = sum(train) >= sum(generation)
    ceiling = train_ceiling if trainer_is_busiest else generation_ceiling
    fraction = statistics.median(fractions)
    return {
        "benchmark": name,
        "asked": asked,
        "steps": num_steps,
        "step_ms": statistics.mean(recorded.seconds) * 1e3,
        "train_ms": statistics.mean(train) * 1e3,
        "generation_ms": statistics.mean(generation) * 1e3,
        "rewards_ms": statistics.mean(rewards) * 1e3,
        "train_in_run_ms": statistics.mean(recorded.trained_seconds) * 1e3,
        "generation_in_run_ms": statistics.mean(recorded.generated_seconds) * 1e3,
        "rollouts_ms": rollouts * 1e3,
        "reward_model_ms": statistics.mean(recorded.scored_seconds) * 1e3,
        "loop_cpu_ms": statistics.mean(recorded.loop_cpu_seconds) * 1e3,
        "samples_per_second": config.train.batch_size / statistics.mean(recorded.seconds),
        "busiest": "train" if trainer_is_busiest else "generation",
        "fractions_by_window": fractions,
        "fraction_of_bound": fraction,
        "train_ceiling": train_ceiling,
        "generation_ceiling": generation_ceiling,
        "ceiling": ceiling,
        "fraction_of_ceiling": fraction / ceiling,
        "passed": fraction / ceiling >= asked,
    }


def report(figures: dict[str, Any]) -> None:
    """Print all figures."""
    speed = f"{figures['samples_per_second']:.0f} samples/s"
    print(f"{figures['benchmark']}, staleness 2, {figures['steps']} steady steps, {speed}")
    print(f"  step in the run                {figures['step_ms']:7.1f} ms")
    for name in ("train", "generation", "rewards"):
        inside = f"   (in the run {figures[f'{name}_in_run_ms']:.1f} ms)" if f"{name}_in_run_ms" in figures else ""
        print(f"  {name + ' alone':<30} {figures[f'{name}_ms']:7.1f} ms{inside}")
    print(f"  event loop's CPU, in the run   {figures['loop_cpu_ms']:7.1f} ms")
    print(f"  step without training          {figures['rollouts_ms']:7.1f} ms   (generation and all that feeds it)")
    windows = " ".join(f"{value:.2f}" for value in figures["fractions_by_window"])
    print(f"  fraction of bound F            {figures['fraction_of_bound']:7.3f}   by window: {windows}")
    print(
        f"  two-process ceiling            {figures['ceiling']:7.3f}   of {figures['busiest']}, the busiest role "
        f"(train {figures['train_ceiling']:.3f}, generation {figures['generation_ceiling']:.3f})"
    )
    print(
        f"  F / ceiling                    {figures['fraction_of_ceiling']:7.3f}   ask >= {figures['asked']}", end="   "
    )
    print("PASS" if figures["passed"] else "FAIL")


def bound_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark that measures a run against its bound."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--skip", type=int, default=40, help="first steps that are no steady state")
    parser.add_argument("--warm-steps", type=int, default=300, help="supervised steps before")
    parser.add_argument("--rounds", type=int, default=3, help="how often the terms are measured")
    parser.add_argument("--json", help="append one line of figures to this file")
    return parser


def measure_with(options: argparse.Namespace, **arguments: Any) -> dict[str, Any]:
    """Measure with the options of ``bound_parser`` and further arguments of ``measure``, print, and write the line."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:  # That of a run.
        figures = runner.run(measure(options.steps, options.rounds, options.warm_steps, options.skip, **arguments))
    report(figures)
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
    return figures


def main() -> int:
    parser = bound_parser(__doc__)
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate is not None:
        asyncio.run(generate_until_told(json.loads(options.generate.read_text())))
        return 0
    return 0 if measure_with(options)["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
