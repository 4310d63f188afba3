"""A training run from beginning to end: which roles start when, and what is written."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.reward_base import Reward
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.critic.ranked_critic import CRITIC
from areal_x.engine.weights import StagedSync
from areal_x.rollout.data_stream import DataStream
from areal_x.rollout.executor import RolloutExecutor
from areal_x.rollout.finish_group import GroupHooks
from areal_x.rollout.parts import max_ready_groups
from areal_x.trainer import engines, roles
from areal_x.trainer.checkpoint_store import CheckpointStore
from areal_x.trainer.evaluation import Evaluator
from areal_x.trainer.evaluation_sets import make_evaluation_sets, start_evaluation_rewards
from areal_x.trainer.evaluations import Evaluations
from areal_x.trainer.exports import POLICY_STATE
from areal_x.trainer.given import Given
from areal_x.trainer.held_out import check_best_metric
from areal_x.trainer.models_beside import CriticModel, check_made_model, give_warm_start, make_critic
from areal_x.trainer.nonfinite import NonFiniteSteps
from areal_x.trainer.open_run import Run, open_run
from areal_x.trainer.prompt_records import PromptRecords
from areal_x.trainer.ranks import open_ranks
from areal_x.trainer.resume import find_resumption
from areal_x.trainer.reward_models import LoopModel, RewardModels, read_reward_models
from areal_x.trainer.rewards import check_group_size, make_pool, make_post_process, start_reward
from areal_x.trainer.session_parts import (
    load_reward_models,
    make_evaluator,
    save_policy,
    supervise,
)
from areal_x.trainer.session_state import (
    Restorable,
    first_model,
    make_checkpointer,
    make_store,
    record_best,
    restore_engines,
    start_rollouts,
    tell_resumption,
)
from areal_x.trainer.step_report import StepReporter
from areal_x.trainer.trainer import Trainer

__all__ = ["run_training"]

_OBJECTS_BETWEEN_COLLECTIONS = 50_000


@dataclass
class Rewards:
    """What scores samples: rule rewards in training and evaluation, and reward models that are not loaded yet."""

    training: Reward
    evaluation: dict[str, Reward]
    """Of each held-out set, by its name."""
    models: list[LoopModel]


@dataclass
class Models:
    """The models of a run, and what serves the policy."""

    path: str
    """Of the policy before the first step."""
    tokenizer: Any
    train_engine: roles.PolicyEngine
    reward_models: RewardModels | None
    engine: InferenceEngine
    weight_sync: StagedSync
    critic: CriticModel | None = None

    @property
    def states(self) -> dict[str, Restorable]:
        """What a checkpoint holds of them, by role."""
        beside: dict[str, Restorable] = {} if self.critic is None else {CRITIC: self.critic}
        return {POLICY_STATE: self.train_engine} | beside


async def run_training(config: ExperimentConfig, given: Given) -> None:
    """Warm start if asked, evaluate, train, evaluate, write the policy and the report; or go on with an earlier run."""
    total_steps = config.train.total_steps
    resumed = await asyncio.to_thread(find_resumption, config)
    if resumed is not None and resumed.is_over(total_steps):
        print(f"{resumed.directory} has done all of its {resumed.step} steps; a larger train.total_steps goes on")
        return
    async with open_run(config, total_steps, given, resumed) as run, AsyncExitStack() as stack:
        check_best_metric(config, run.data.held_out)
        tell_resumption(run)
        rewards = await start_rewards(run, stack)
        models = await load_models(run, rewards, stack)
        train_engine = models.train_engine
        await start_engine(run, models)
        if resumed is not None or engines.needs_first_weights(config):
            await models.weight_sync.stage(train_engine.version)
            await models.weight_sync.publish(train_engine.version)
        store = await run.thread.call(make_store, run, models.path)
        sets = make_evaluation_sets(config, run.data.held_out, rewards.evaluation, models.tokenizer, given)
        evaluator = make_evaluator(run, models.engine, sets, models.reward_models, record_best(run, store))
        if run.needs_evaluation():
            await evaluator.evaluate(run.steps_done, train_engine.version)
        trainer = make_trainer(run, rewards, models, evaluator, store)
        await train_while_rolling_out(trainer, trainer.executor)
        if run.steps_done < total_steps:
            await evaluator.evaluate(total_steps, train_engine.version)
        await run.thread.call(save_policy, run, train_engine, models.tokenizer)
    finish(run)


async def start_rewards(run: Run, stack: AsyncExitStack) -> Rewards:
    """Everything that scores, checked against the data; worker processes end with ``stack``."""
    config, reward_fn = run.config, run.given.reward_fn
    models = await run.thread.call(read_reward_models, config)
    pool = make_pool(config, stack)
    reward = await start_reward(config, run.data.train, pool, stack, reward_fn)
    check_group_size(reward, "rollout.group_size", config.rollout.group_size)
    known = (run.data.train.name, reward)
    evaluation = await start_evaluation_rewards(config, run.data.held_out, pool, stack, reward_fn, known)
    return Rewards(reward, evaluation, models)


async def load_models(run: Run, rewards: Rewards, stack: AsyncExitStack) -> Models:
    """Everything that needs a model; the engine is not started yet."""
    config, thread, placement = run.config, run.thread, run.given.placement
    run.display.phase("loading the model")
    path = await thread.call(first_model, run)
    tokenizer = await thread.call(roles.load_tokenizer, config, path)
    await thread.call(check_made_model, config, path)
    ranks = await stack.enter_async_context(open_ranks(config, placement, run.directory, thread))
    train_engine = await thread.call(roles.make_train_engine, config, path, ranks)
    critic = await thread.call(make_critic, config, path, ranks)
    staging = engines.stage_weights(config, train_engine, path, run.directory, stack, placement)
    engines.check_device_budget(config, train_engine, staging, critic)
    engines.check_reward_model_memory(config, train_engine, rewards.models, critic)
    reward_models = await load_reward_models(run, rewards.models, rewards.training, ranks)
    engine = engines.make_inference_engine(config, path, staging, run.directory, stack, placement)
    weight_sync = StagedSync(engines.published_weights(config, train_engine), staging, [engine])
    return Models(path, tokenizer, train_engine, reward_models, engine, weight_sync, critic)


async def start_engine(run: Run, models: Models) -> None:
    """Start the engine, and meanwhile (colocated, afterwards, while it sleeps) make the warm start if there is one, or
    read the checkpoint that the run goes on from."""
    config, engine, train_engine = run.config, models.engine, models.train_engine
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(engine.start(), name="start the inference engine")
        if not config.starts_warm and run.resumed is None:
            run.display.phase("starting the inference engine")
            return
        if config.rollout.colocated:
            await starting
            await engine.sleep()
        if run.resumed is not None:
            run.display.phase("reading the checkpoint")
            await run.thread.call(restore_engines, run, models.states, train_engine)
            return
        group.create_task(supervise(run, models.tokenizer, train_engine), name="warm start")
    train, thread = config.train, run.thread
    rates = (train.learning_rate, train.lr_schedule, train.warmup_steps, train.total_steps)
    await thread.call(train_engine.reset_optimizer, *rates)
    await thread.call(give_warm_start, config, train_engine, models.critic, run.directory)
    await thread.call(train_engine.release_memory)
    train_engine.version += 1


def make_trainer(run: Run, rewards: Rewards, models: Models, evaluator: Evaluator, store: CheckpointStore) -> Trainer:
    """The loop, with what it takes groups from and what it reports to, where the run goes on or at the beginning."""
    config, tokenizer, train_engine = run.config, models.tokenizer, models.train_engine
    stream = DataStream(run.data.train, seed=config.seed, shuffle=config.data.shuffle)
    prompts = PromptRecords(run.writer, stream.place)
    hooks = make_hooks(config, run.given, rewards.training, waits_for_models=bool(rewards.models))
    workflow = roles.make_workflow(config, tokenizer, rewards.training, config.rollout.sampling, run.given)
    executor = make_executor(run, workflow, hooks, models.engine, train_engine.version, stream, prompts)
    reporter = make_reporter(run, tokenizer, rewards.training, prompts)
    checkpointer = make_checkpointer(
        run,
        store,
        models.states,
        model_path=models.path,
        tokenizer=tokenizer,
        train_engine=train_engine,
        executor=executor,
        stream=stream,
        reporter=reporter,
    )
    return Trainer(
        config,
        executor=executor,
        engine=models.engine,
        train_engine=train_engine,
        weight_sync=models.weight_sync,
        thread=run.thread,
        reporter=reporter,
        evaluations=Evaluations(config, evaluator.evaluate),
        reward_models=models.reward_models,
        critic=models.critic,
        nonfinite=NonFiniteSteps(config.train.max_skipped_in_a_row, run.directory / "skipped", train_engine),
        checkpointer=checkpointer,
        steps_done=run.steps_done,
    )


async def train_while_rolling_out(trainer: Trainer, executor: RolloutExecutor) -> None:
    """Run both until the trainer is done; whichever fails ends the other."""
    # What is loaded stays. Episodes make so many objects that a full collection comes every few steps, and it would
    # walk all of it with the interpreter's lock held.
    gc.collect()
    gc.freeze()
    with _rare_collections():
        async with asyncio.TaskGroup() as group:
            group.create_task(executor.run(), name="rollout")
            await trainer.run()
            await executor.stop()


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Thousands of episodes are in flight, and all of what they hold outlives the 700 objects after which Python looks
    for cycles: it would walk them again and again, with nothing to find."""
    usual = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


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
    run: Run,
    workflow: RolloutWorkflow,
    hooks: GroupHooks,
    engine: InferenceEngine,
    version: int,
    stream: DataStream,
    prompts: PromptRecords,
) -> RolloutExecutor:
    """The executor on an endless stream of the training items, shuffled from the run's seed."""
    config, start = run.config, start_rollouts(run, stream)
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
        start=start,
        on_span=run.add_rollout_span,
        on_prompt=prompts.on_prompt,
    )


def make_reporter(run: Run, tokenizer: Any, reward: Reward, prompts: PromptRecords) -> StepReporter:
    """What tells files and people of each step."""
    texts, count = roles.token_texts(tokenizer), run.config.observe.trajectories_per_step
    earlier = None if run.resumed is None else run.resumed.checkpoint.facts["totals"]
    return StepReporter(run.writer, run.display, texts, count, reward.metrics, prompts, earlier)


def finish(run: Run) -> None:
    """Write the pictures and the report, and say how the run went."""
    from areal_x.observe.curves import write_curves
    from areal_x.observe.report import build_report
    from areal_x.observe.summary import summary_lines

    if run.config.observe.report:
        write_curves(run.directory)
        build_report(run.directory)
    print("\n".join(summary_lines(run.directory)))
