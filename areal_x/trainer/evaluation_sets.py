"""The data sets of an evaluation, each with its reward and workflow, and the evaluator of them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from areal_x.api.config import ExperimentConfig
from areal_x.api.evaluation_checks import majorities_at, passes_at
from areal_x.api.reward_base import Reward
from areal_x.process_pool import ProcessPool
from areal_x.trainer import roles
from areal_x.trainer.evaluation import EvaluationSet
from areal_x.trainer.given import Given
from areal_x.trainer.held_out import HeldOut
from areal_x.trainer.rewards import build_reward, check_group_size, check_items

__all__ = ["make_evaluation_sets", "start_evaluation_rewards"]


async def start_evaluation_rewards(
    config: ExperimentConfig,
    held_out: Sequence[HeldOut],
    pool: ProcessPool,
    stack: AsyncExitStack,
    given: Callable[..., Any] | None = None,
    shared: tuple[str, Reward] | None = None,
) -> dict[str, Reward]:
    """The reward of each set by its name, ready; sets with the same reward share it.

    A set has the run's reward, but for what it says itself (``reward_fn``); where the run's reward is selected by the
    name of its data, a set with another name has the reward of that name.

    Args:
        given: a function of a script, in place of the configured reward.
        shared: the run's own reward, and the name of its data.

    Raises:
        ConfigError: a reward cannot be built or started, or groups are too small for it.
        DataError: the columns of the items do not fit the reward.
    """
    started: dict[tuple[str | None, str | None], Reward] = {}
    if shared is not None:
        started[None, _data_name(config, given, shared[0])] = shared[1]
    rewards = {}
    for one in held_out:
        settings = one.settings
        function = settings.reward_fn
        own = (function, _data_name(config, given, one.items.name) if function is None else None)
        if own not in started:
            reward = _build(config, function, one, pool, given)
            stack.push_async_callback(reward.close)
            await reward.start()
            started[own] = reward
        reward, key = started[own], settings.reward_key
        assert settings.prompt_key is not None and settings.group_size is not None
        check_items(reward, one.items, settings.prompt_key)
        check_group_size(reward, f"{one.key}.group_size", settings.group_size)
        rewards[one.name] = reward if key is None or key in config.used_reward_models else reward.with_key(key)
    return rewards


def _build(
    config: ExperimentConfig,
    function: str | None,
    held_out: HeldOut,
    pool: ProcessPool,
    given: Callable[..., Any] | None,
) -> Reward:
    if function is None:
        return build_reward(config.reward, held_out.items.name, pool, given)
    alone = dataclasses.replace(config.reward, fn=function, kwargs={}, group=None, rewards={}, reward_key="reward")
    return build_reward(alone, held_out.items.name, pool)


def _data_name(config: ExperimentConfig, given: Callable[..., Any] | None, name: str) -> str | None:
    """The name of data, where the run's reward depends on it."""
    is_named = given is not None or (config.reward.fn is not None and not config.reward.rewards)
    return None if is_named else name


def make_evaluation_sets(
    config: ExperimentConfig,
    held_out: Sequence[HeldOut],
    rewards: Mapping[str, Reward],
    tokenizer: Any,
    given: Given,
) -> list[EvaluationSet]:
    """Every set with its reward, and a workflow that samples as the set says."""
    sets = []
    for one in held_out:
        settings = one.settings
        assert settings.prompt_key is not None and settings.group_size is not None and settings.sampling is not None
        reward = rewards[one.name]
        data = dataclasses.replace(config.data, prompt_key=settings.prompt_key)
        own = dataclasses.replace(config, data=data)
        sets.append(
            EvaluationSet(
                name=one.name,
                items=one.items.rows,
                workflow=roles.make_workflow(own, tokenizer, reward, settings.sampling, given),
                score_group=reward.finish_group,
                group_size=settings.group_size,
                pass_at=tuple(passes_at(config, settings.group_size)),
                majority_at=tuple(majorities_at(config, settings.group_size)),
                reward_key=settings.reward_key,
            )
        )
    return sets
