"""Supervised fine-tuning alone."""

from __future__ import annotations

from contextlib import AsyncExitStack

from areal_x.api.config import ExperimentConfig
from areal_x.trainer import roles
from areal_x.trainer.given import Given
from areal_x.trainer.open_run import open_run
from areal_x.trainer.ranks import open_ranks
from areal_x.trainer.session_parts import save_policy, supervise

__all__ = ["run_supervised"]


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
