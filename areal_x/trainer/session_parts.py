"""Parts that several kinds of session are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.reward_base import NoReward, Reward
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.trainer import roles
from areal_x.trainer.evaluation import Evaluator
from areal_x.trainer.open_run import Run
from areal_x.trainer.reward_models import LoopModel, RewardModels
from areal_x.trainer.rewards import check_group_size
from areal_x.trainer.warm_start import warm_start

__all__ = [
    "check_held_out_groups",
    "load_reward_models",
    "make_evaluator",
    "save_policy",
    "supervise",
    "with_evaluation_key",
]


async def supervise(run: Run, tokenizer: Any, train_engine: roles.PolicyEngine) -> None:
    """The supervised phase of a run, on ``sft.path`` or the run's own items."""
    items = await run.thread.call(roles.load_supervised, run.config, run.data)
    await warm_start(run.config, items, tokenizer, train_engine, run.thread, writer=run.writer, display=run.display)


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


def save_policy(run: Run, train_engine: roles.PolicyEngine, tokenizer: Any) -> None:
    """Write the policy and its tokenizer in Hugging Face format."""
    train_engine.save(run.directory / "policy")
    tokenizer.save_pretrained(run.directory / "policy")
