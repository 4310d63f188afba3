"""A training run from beginning to end: which roles start when, and what is written."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from typing import Any

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.reward_base import Reward
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.weights import StagedSync
from areal_x.rollout.data_stream import DataStream
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.finish_group import GroupHooks
from areal_x.rollout.parts import max_ready_groups
from areal_x.trainer import engines, roles
from areal_x.trainer.given import Given
from areal_x.trainer.nonfinite import NonFiniteSteps
from areal_x.trainer.open_run import Run, open_run
from areal_x.trainer.ranks import open_ranks
from areal_x.trainer.reward_models import read_reward_models
from areal_x.trainer.rewards import check_group_size, check_items, make_post_process, start_reward
from areal_x.trainer.session_parts import (
    check_held_out_groups,
    load_reward_models,
    make_evaluator,
    save_policy,
    supervise,
    with_evaluation_key,
)
from areal_x.trainer.step_report import StepReporter
from areal_x.trainer.trainer import Trainer

__all__ = ["run_training"]


async def run_training(config: ExperimentConfig, given: Given) -> None:
    """Warm start if asked, evaluate, train, evaluate, write the policy and the report."""
    async with open_run(config, config.train.total_steps, given) as run, AsyncExitStack() as stack:
        thread = run.thread
        loop_models = await thread.call(read_reward_models, config)
        reward = await start_reward(config, run.data.train, stack, given.reward_fn)
        check_items(reward, run.data.held_out, config.data.prompt_key)
        check_group_size(reward, "rollout.group_size", config.rollout.group_size)
        check_held_out_groups(config, run.data, reward)
        hooks = make_hooks(config, given, reward, waits_for_models=bool(loop_models))
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
            reporter=make_reporter(run, tokenizer, reward),
            evaluate=evaluator.evaluate,
            reward_models=reward_models,
            nonfinite=NonFiniteSteps(config.train.max_skipped_in_a_row, run.directory / "skipped", train_engine),
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


def make_hooks(config: ExperimentConfig, given: Given, reward: Reward, *, waits_for_models: bool) -> GroupHooks:
    """What is done to a complete group of training."""
    return GroupHooks(
        reward.finish_group,
        make_post_process(config),
        roles.load_filter(config, given),
        roles.load_early_filter(config),
        waits_for_models=waits_for_models,
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


def make_reporter(run: Run, tokenizer: Any, reward: Reward) -> StepReporter:
    """What tells files and people of each step."""
    texts, count = roles.token_texts(tokenizer), run.config.observe.trajectories_per_step
    return StepReporter(run.writer, run.display, texts, count, reward.metrics)


def finish(run: Run) -> None:
    """Write the pictures and the report, and say how the run went."""
    from areal_x.observe.curves import write_curves
    from areal_x.observe.report import build_report
    from areal_x.observe.summary import summary_lines

    if run.config.observe.report:
        write_curves(run.directory)
        build_report(run.directory)
    print("\n".join(summary_lines(run.directory)))
