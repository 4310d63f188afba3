"""Parts that several kinds of session are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from areal_x.api.engine_api import InferenceEngine
from areal_x.api.reward_base import NoReward, Reward
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.trainer import roles
from areal_x.trainer.evaluation import EvaluationSet, Evaluator
from areal_x.trainer.open_run import Run
from areal_x.trainer.reward_models import LoopModel, RewardModels
from areal_x.trainer.warm_start import warm_start

__all__ = [
    "load_reward_models",
    "make_evaluator",
    "save_policy",
    "supervise",
]


async def supervise(run: Run, tokenizer: Any, train_engine: roles.PolicyEngine) -> None:
    """The supervised phase of a run, on ``sft.path`` or the run's own items."""
    items = await run.thread.call(roles.load_supervised, run.config, run.data)
    await warm_start(run.config, items, tokenizer, train_engine, run.thread, writer=run.writer, display=run.display)


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
    engine: InferenceEngine,
    sets: Sequence[EvaluationSet],
    reward_models: RewardModels | None = None,
    on_measured: Callable[[int, dict[str, float]], None] | None = None,
) -> Evaluator:
    """The evaluator of a run's held-out sets; ``on_measured`` is called with step and metrics of each evaluation."""
    return Evaluator(
        run.config,
        engine=engine,
        sets=sets,
        writer=run.writer,
        display=run.display,
        reward_models=reward_models,
        on_measured=on_measured,
    )


def save_policy(run: Run, train_engine: roles.PolicyEngine, tokenizer: Any) -> None:
    """Write the policy and its tokenizer in Hugging Face format."""
    train_engine.save(run.directory / "policy")
    tokenizer.save_pretrained(run.directory / "policy")
