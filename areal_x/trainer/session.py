"""One run from beginning to end: which roles start when, and what is written."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.errors import ConfigError, DataError
from areal_x.api.reward_base import NoReward, Reward
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.engine.weights import StagedSync
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.rollout.data_stream import DataStream
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.finish_group import GroupHooks
from areal_x.rollout.parts import max_ready_groups
from areal_x.trainer import engines, roles
from areal_x.trainer.evaluation import Evaluator
from areal_x.trainer.given import Given
from areal_x.trainer.ranks import open_ranks
from areal_x.trainer.reward_models import LoopModel, RewardModels, read_reward_models
from areal_x.trainer.rewards import check_group_size, check_items, make_post_process, start_reward
from areal_x.trainer.run_directory import create_run_directory
from areal_x.trainer.step_report import StepReporter
from areal_x.trainer.trainer import Trainer
from areal_x.trainer.trainer_thread import TrainerThread
from areal_x.trainer.warm_start import warm_start

__all__ = ["open_files", "run_evaluation", "run_supervised", "run_training"]


@dataclass
class Run:
    """What every kind of run has: its data, directory, writer and display, and the thread for all that takes long."""

    config: ExperimentConfig
    data: roles.Data
    directory: Path
    writer: RunWriter
    display: RunDisplay
    thread: TrainerThread
    given: Given = field(default_factory=Given)

    def add_rollout_span(self, lane: str, start: float, end: float) -> None:
        """Report what an episode did; the episode as a whole would only repeat its parts."""
        if lane != "episode":
            self.writer.add_span(lane, "", start, end)


@asynccontextmanager
async def open_run(config: ExperimentConfig, total_steps: int, given: Given | None = None) -> AsyncIterator[Run]:
    """Read the data, make the directory, open the files; close them whatever happens."""
    # Everything slow runs on the thread, never on the loop, so that an interrupt is answered at any moment.
    thread = TrainerThread()
    data = await thread.call(roles.load_data, config)
    async with open_files(config, total_steps, thread) as (directory, writer, display):
        yield Run(config, data, directory, writer, display, thread, given or Given())


@asynccontextmanager
async def open_files(
    config: ExperimentConfig, total_steps: int, thread: TrainerThread
) -> AsyncIterator[tuple[Path, RunWriter, RunDisplay]]:
    """The directory of a run, its files and its display; closed, and the thread with them, whatever happens."""
    directory = create_run_directory(config)
    writer = RunWriter(directory, OmegaConf.to_yaml(OmegaConf.structured(config)), config.observe, config.name)
    display = RunDisplay(total_steps, progress=config.observe.progress)
    status = "failed"
    try:
        yield directory, writer, display
        status = "finished"
    except asyncio.CancelledError:
        status = "interrupted"
        raise
    finally:
        thread.close()
        display.close()
        writer.close(status)
        if status == "failed" and not (directory / "metrics.jsonl").stat().st_size:
            shutil.rmtree(directory)  # Nothing was reported yet: a wrong setting leaves no numbered directories behind.


async def run_training(config: ExperimentConfig, given: Given) -> None:
    """Warm start if asked, evaluate, train, evaluate, write the policy and the report."""
    async with open_run(config, config.train.total_steps, given) as run, AsyncExitStack() as stack:
        thread = run.thread
        loop_models = await thread.call(read_reward_models, config)
        reward = await start_reward(config, run.data.train, stack, given.reward_fn)
        check_items(reward, run.data.held_out, config.data.prompt_key)
        check_group_size(reward, "rollout.group_size", config.rollout.group_size)
        check_held_out_groups(config, run.data, reward)
        hooks = GroupHooks(
            reward.finish_group,
            make_post_process(config),
            roles.load_filter(config, given),
            roles.load_early_filter(config),
            waits_for_models=bool(loop_models),
        )
        run.display.phase("loading the model")
        model_path = await thread.call(roles.prepare_model, config, run.directory, run.data)
        tokenizer = await thread.call(roles.load_tokenizer, config, model_path)
        workflow = roles.make_workflow(config, tokenizer, reward, config.rollout.sampling, given)
        evaluation_reward = with_evaluation_key(config, reward)
        evaluation_workflow = roles.make_workflow(
            config, tokenizer, evaluation_reward, config.evaluation.sampling, given
        )
        ranks = await stack.enter_async_context(open_ranks(config, given.placement, run.directory, thread))
        train_engine = await thread.call(roles.make_train_engine, config, model_path, ranks)
        staging = engines.stage_weights(config, train_engine, model_path, run.directory, stack, given.placement)
        engines.check_device_budget(config, train_engine, staging)
        engines.check_reward_model_memory(config, train_engine, loop_models)
        reward_models = await load_reward_models(run, loop_models, reward, ranks)
        engine = engines.make_inference_engine(config, model_path, staging, run.directory, stack, given.placement)
        weight_sync = StagedSync(engines.published_weights(config, train_engine), staging, [engine])
        await start_engine(run, engine, tokenizer, train_engine)
        if engines.needs_first_weights(config):
            await weight_sync.stage(train_engine.version)
            await weight_sync.publish(train_engine.version)
        evaluator = make_evaluator(run, evaluation_workflow, engine, evaluation_reward, reward_models)
        await evaluator.evaluate(0, train_engine.version)
        executor = make_executor(run, workflow, hooks, engine, train_engine.version)
        trainer = Trainer(
            config,
            executor=executor,
            engine=engine,
            train_engine=train_engine,
            weight_sync=weight_sync,
            thread=thread,
            reporter=StepReporter(
                run.writer,
                run.display,
                roles.token_texts(tokenizer),
                config.observe.trajectories_per_step,
                reward.metrics,
            ),
            evaluate=evaluator.evaluate,
            reward_models=reward_models,
        )
        await train_while_rolling_out(trainer, executor)
        await evaluator.evaluate(config.train.total_steps, train_engine.version)
        await thread.call(save_policy, run, train_engine, tokenizer)
    finish(run)


async def start_engine(run: Run, engine: InferenceEngine, tokenizer: Any, train_engine: roles.PolicyEngine) -> None:
    """Start the engine, and meanwhile (colocated, afterwards, while it sleeps) make the warm start if there is one."""
    config = run.config
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(engine.start(), name="start the inference engine")
        if not config.starts_warm:
            run.display.phase("starting the inference engine")
            return
        if config.rollout.colocated:
            await starting
            await engine.sleep()
        group.create_task(supervise(run, tokenizer, train_engine), name="warm start")
    train, thread = config.train, run.thread
    rates = (train.learning_rate, train.lr_schedule, train.warmup_steps, train.total_steps)
    await thread.call(train_engine.reset_optimizer, *rates)
    await thread.call(train_engine.release_memory)
    train_engine.version += 1


async def train_while_rolling_out(trainer: Trainer, executor: RolloutExecutor) -> None:
    """Run both until the trainer is done; whichever fails ends the other."""
    # What is loaded stays. Episodes make so many objects that a full collection comes every few steps, and it would
    # walk all of it with the interpreter's lock held.
    gc.collect()
    gc.freeze()
    async with asyncio.TaskGroup() as group:
        group.create_task(executor.run(), name="rollout")
        await trainer.run()
        await executor.stop()


async def run_supervised(config: ExperimentConfig, given: Given) -> None:
    """Supervised fine-tuning alone, with ``sft`` of the configuration; writes the policy."""
    async with open_run(config, config.sft.steps, given) as run, AsyncExitStack() as stack:
        model_path = await run.thread.call(roles.prepare_model, config, run.directory, run.data)
        tokenizer = await run.thread.call(roles.load_tokenizer, config, model_path)
        ranks = await stack.enter_async_context(open_ranks(config, given.placement, run.directory, run.thread))
        train_engine = await run.thread.call(roles.make_train_engine, config, model_path, ranks)
        await supervise(run, tokenizer, train_engine)
        await run.thread.call(save_policy, run, train_engine, tokenizer)
    print(f"wrote {run.directory / 'policy'}; use it with model.path={run.directory / 'policy'}")


async def supervise(run: Run, tokenizer: Any, train_engine: roles.PolicyEngine) -> None:
    """The supervised phase of a run, on ``sft.path`` or the run's own items."""
    items = await run.thread.call(roles.load_supervised, run.config, run.data)
    await warm_start(run.config, items, tokenizer, train_engine, run.thread, writer=run.writer, display=run.display)


async def run_evaluation(config: ExperimentConfig, given: Given) -> None:
    """Measure ``model.path`` on the held-out items."""
    async with open_run(config, 0, given) as run, AsyncExitStack() as stack:
        if not run.data.held_out:
            raise DataError("there is nothing to evaluate on; set data.eval_path")
        if config.model.path is None and config.rollout.engine != "openai":
            raise ConfigError("model.path is not set; name the model to evaluate")
        loop_models = await run.thread.call(read_reward_models, config)
        reward = with_evaluation_key(config, await start_reward(config, run.data.held_out, stack, given.reward_fn))
        check_held_out_groups(config, run.data, reward)
        tokenizer = await run.thread.call(roles.load_tokenizer, config, config.model.path)
        workflow = roles.make_workflow(config, tokenizer, reward, config.evaluation.sampling, given)
        engine = engines.make_inference_engine(config, config.model.path, None, run.directory, stack, given.placement)
        run.display.phase("starting the inference engine")
        await engine.start()
        reward_models = await load_reward_models(run, loop_models, reward, None)
        metrics = await make_evaluator(run, workflow, engine, reward, reward_models).evaluate(0, 0)
    for name, value in metrics.items():
        print(f"{name} {value:.4f}")


def check_held_out_groups(config: ExperimentConfig, data: roles.Data, reward: Reward) -> None:
    """Groups of the evaluation are large enough for the reward, if there is one."""
    if data.held_out:
        check_group_size(reward, "evaluation.group_size", config.evaluation.group_size)


def with_evaluation_key(config: ExperimentConfig, reward: Reward) -> Reward:
    """The reward as evaluation sees it: with its own key, if one is configured."""
    key = config.reward.eval_reward_key
    return reward if key is None or key in config.used_reward_models else reward.with_key(key)


async def load_reward_models(
    run: Run, models: Sequence[LoopModel], reward: Reward, ranks: RankGroup | None
) -> RewardModels | None:
    """The reward models of the run, ready to score in this process or on the ranks; ``None`` without any."""
    if not models:
        return None
    run.display.phase("loading the reward model" if len(models) == 1 else "loading the reward models")
    for model in models:
        await run.thread.call(model.load, run.config.model.device, ranks, run.config.model.trust_remote_code)

    def add_span(name: str, start: float, end: float) -> None:
        run.writer.add_span("reward_model", name, start, end)

    return RewardModels(run.config, models, run.thread, add_span, has_rule=not isinstance(reward, NoReward))


def make_evaluator(
    run: Run,
    workflow: RolloutWorkflow,
    engine: InferenceEngine,
    reward: Reward,
    reward_models: RewardModels | None = None,
) -> Evaluator:
    """The evaluator of the run's held-out items."""
    return Evaluator(
        run.config,
        engine=engine,
        workflow=workflow,
        items=run.data.held_out,
        dataset=run.data.held_out.name,
        score_group=reward.finish_group,
        writer=run.writer,
        display=run.display,
        reward_models=reward_models,
    )


def make_executor(
    run: Run, workflow: RolloutWorkflow, hooks: GroupHooks, engine: InferenceEngine, version: int
) -> RolloutExecutor:
    """The executor on an endless stream of the training items, shuffled from the run's seed."""
    config = run.config
    stream = DataStream(run.data.train, seed=config.seed, shuffle=config.data.shuffle)
    return RolloutExecutor(
        engine=engine,
        workflow=workflow,
        items=(item for _, item in stream),
        config=config.rollout,
        groups_per_step=config.groups_per_step,
        on_failure=config.reward.on_failure,
        seed=config.seed,
        hooks=hooks,
        max_failure_rate=config.reward.max_failure_rate,
        failure_window=config.reward.failure_window,
        max_ready_groups=max_ready_groups(config.groups_per_part, config.groups_per_step),
        version=version,
        on_span=run.add_rollout_span,
    )


def save_policy(run: Run, train_engine: roles.PolicyEngine, tokenizer: Any) -> None:
    """Write the policy and its tokenizer in Hugging Face format."""
    train_engine.save(run.directory / "policy")
    tokenizer.save_pretrained(run.directory / "policy")


def finish(run: Run) -> None:
    """Write the pictures and the report, and say how the run went."""
    from areal_x.observe.curves import write_curves
    from areal_x.observe.report import build_report
    from areal_x.observe.summary import summary_lines

    if run.config.observe.report:
        write_curves(run.directory)
        build_report(run.directory)
    print("\n".join(summary_lines(run.directory)))
