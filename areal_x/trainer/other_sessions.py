"""Sessions beside training: supervised fine-tuning alone, and the measuring of a model."""

from __future__ import annotations

from contextlib import AsyncExitStack

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError, DataError
from areal_x.trainer import engines, roles
from areal_x.trainer.given import Given
from areal_x.trainer.open_run import open_run
from areal_x.trainer.ranks import open_ranks
from areal_x.trainer.reward_models import read_reward_models
from areal_x.trainer.rewards import start_reward
from areal_x.trainer.session_parts import (
    check_held_out_groups,
    load_reward_models,
    make_evaluator,
    save_policy,
    supervise,
    with_evaluation_key,
)

__all__ = ["run_evaluation", "run_supervised"]


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
