"""``areal-x eval``: measures any model, or the policy of any checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import numpy as np

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import InferenceEngine
from areal_x.api.errors import ConfigError, DataError
from areal_x.api.records import FloatArray, IntArray, TrajectoryGroup
from areal_x.trainer import engines, roles
from areal_x.trainer.evaluation import EvaluationSet, Evaluator
from areal_x.trainer.evaluation_sets import make_evaluation_sets, start_evaluation_rewards
from areal_x.trainer.exports import exported_model
from areal_x.trainer.given import Given
from areal_x.trainer.model_places import ModelPlace, locate_model
from areal_x.trainer.open_run import Run, open_run
from areal_x.trainer.reward_models import RewardModels, read_reward_models
from areal_x.trainer.rewards import make_pool
from areal_x.trainer.sample_records import sample_records
from areal_x.trainer.session_parts import load_reward_models

__all__ = ["run_evaluation", "table_lines"]


async def run_evaluation(config: ExperimentConfig, given: Given) -> None:
    """Measure ``model.path`` on the held-out sets; writes metrics and samples as a run does, and prints a table."""
    async with open_run(config, 0, given) as run, AsyncExitStack() as stack:
        held_out = run.data.held_out
        if not held_out:
            raise DataError("there is nothing to evaluate on; set data.eval_path or evaluation.sets")
        place = None if config.model.path is None else locate_model(config.model.path)
        model = str(place or config.model.path or "the model of the endpoint")
        model_path = await run.thread.call(_model_of, config)
        loop_models = await run.thread.call(read_reward_models, config)
        pool = make_pool(config, stack)
        rewards = await start_evaluation_rewards(config, held_out, pool, stack, given.reward_fn)
        tokenizer = await run.thread.call(roles.load_tokenizer, config, model_path)
        engine = engines.make_inference_engine(config, model_path, None, run.directory, stack, given.placement)
        run.display.phase("starting the inference engine")
        await engine.start()
        reward_models = await load_reward_models(run, loop_models, rewards[held_out[0].name], None)
        sets = make_evaluation_sets(config, held_out, rewards, tokenizer, given)
        evaluator = _evaluator(run, engine, sets, model, roles.token_texts(tokenizer), reward_models)
        known = place or ModelPlace(run.directory)
        metrics = await evaluator.evaluate(known.step or 0, known.version or 0)
    print("\n".join([f"\nmodel  {model}", *(line for one in sets for line in table_lines(one, metrics))]))
    print(f"\nfiles  {run.directory}/: metrics.jsonl, trajectories.jsonl")


def _model_of(config: ExperimentConfig) -> str | None:
    """The model to load, made of a checkpoint if need be; ``None`` for an endpoint."""
    path = config.model.path
    if path is None:
        if config.rollout.engine != "openai":
            raise ConfigError("model.path is not set; name the model to evaluate")
        return None
    exported = exported_model(path, trust_remote_code=config.model.trust_remote_code)
    return path if exported is None else str(exported)


def _evaluator(
    run: Run,
    engine: InferenceEngine,
    sets: Sequence[EvaluationSet],
    model: str,
    decode_tokens: Callable[[IntArray], list[str]],
    reward_models: RewardModels | None,
) -> Evaluator:
    """An evaluator that also writes samples of each set."""

    def write(step: int, version: int, name: str, groups: Sequence[TrajectoryGroup]) -> None:
        scored = [replace(group, rewards=_rewards(group)) for group in groups]
        count = run.config.observe.trajectories_per_step
        records = sample_records(scored, None, decode_tokens, step=step, version=version, count=count)
        run.writer.write_trajectories(record | {"dataset": name} for record in records)

    return Evaluator(
        run.config,
        engine=engine,
        sets=sets,
        writer=run.writer,
        display=run.display,
        reward_models=reward_models,
        on_groups=write,
        fixed_model=model,
    )


def _rewards(group: TrajectoryGroup) -> FloatArray:
    """The final rewards of a group, those of reward models included; NaN where there is none."""
    outcomes = [trajectory.outcome for trajectory in group.trajectories]
    values = [math.nan if outcome is None or outcome.value is None else outcome.value for outcome in outcomes]
    return np.array(values, dtype=np.float32)


def table_lines(of_set: EvaluationSet, metrics: Mapping[str, float]) -> list[str]:
    """What was measured of one set, a line for each metric."""
    samples = f" x {of_set.group_size} samples" if of_set.group_size > 1 else ""
    seconds = metrics[f"perf/evaluation_seconds/{of_set.name}"]
    prefix = f"eval/{of_set.name}/"
    found = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    width = max(map(len, found))
    head = f"\n{of_set.name}: {len(of_set.items)} prompts{samples}, {seconds:.1f} s"
    return [head, *(f"  {name:<{width}}  {_shown(name, found[name])}" for name in sorted(found, key=_place))]


def _place(name: str) -> tuple[int, str, int]:
    """What people look for comes first; ``pass@2`` comes before ``pass@16``."""
    first = ("accuracy", "reward", "pass", "majority")
    word, _, number = name.partition("@")
    place = first.index(word) if word in first else len(first)
    return place, word if place < len(first) else name, int(number) if number.isdigit() else 0


def _shown(name: str, value: float) -> str:
    is_count = name.startswith(("num_", "outcome/")) or name.endswith("_left_out")
    return f"{value:.0f}" if is_count else f"{value:.4f}"
