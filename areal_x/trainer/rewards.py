"""The run's reward, from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from areal_x.api.config import ExperimentConfig, RewardConfig
from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import load_object, split_library
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.api.reward_base import NoReward, Reward
from areal_x.api.reward_model_checks import NO_RULE_REWARD
from areal_x.api.reward_set import RewardSet, WeightedReward
from areal_x.api.travelling import by_value
from areal_x.process_pool import ProcessPool
from areal_x.reward.configured import reward_function
from areal_x.rollout.dataset import Items
from areal_x.rollout.post_process import PostProcessHook, PostProcessor

__all__ = [
    "build_reward",
    "check_group_size",
    "check_items",
    "make_pool",
    "make_post_process",
    "start_reward",
]


def build_reward(
    reward: RewardConfig, dataset: str | None, pool: ProcessPool, given: Callable[..., Any] | None = None
) -> Reward:
    """The given or configured reward, or the weighted set of several, with synchronous ones in ``pool``; not yet
    started."""
    if given is None and reward.fn == NO_RULE_REWARD:
        return NoReward(reward.score_truncated)
    if given is not None or not reward.rewards:
        return AsyncRewardWrapper(
            reward_function("", reward, dataset) if given is None else by_value(given),
            reward.timeout_seconds,
            pool=pool,
            reward_key=reward.reward_key,
            group=reward.group,
            score_truncated=reward.score_truncated,
        )
    members = []
    for name, part in reward.rewards.items():
        wrapper = AsyncRewardWrapper(
            reward_function(name, part, dataset),
            part.timeout_seconds or reward.timeout_seconds,
            pool=pool,
            reward_key=part.reward_key,
            group=part.group,
            score_truncated=reward.score_truncated,
        )
        members.append(WeightedReward(name, wrapper, part.weight))
    return RewardSet(members, reward.reward_key)


def make_pool(config: ExperimentConfig, stack: AsyncExitStack) -> ProcessPool:
    """The run's process pool for synchronous rewards; closed by ``stack``."""
    pool = ProcessPool(
        num_workers=config.reward.num_workers,
        memory_limit_bytes=int(config.reward.memory_limit_gib * 2**30),
    )
    stack.push_async_callback(pool.close)
    return pool


async def start_reward(
    config: ExperimentConfig,
    items: Items,
    pool: ProcessPool,
    stack: AsyncExitStack,
    given: Callable[..., Any] | None = None,
) -> Reward:
    """The run's reward on the run's process pool, its modules imported before any deadline runs; closed by ``stack``.

    Args:
        given: a function to use in place of the configured reward.

    Raises:
        ConfigError: the reward cannot be built or started.
        DataError: the columns of ``items`` do not fit it.
    """
    reward = build_reward(config.reward, items.name, pool, given)
    check_items(reward, items, config.data.prompt_key)
    stack.push_async_callback(reward.close)
    await reward.start()
    return reward


def check_items(reward: Reward, items: Items, prompt_key: str) -> None:
    """Check the columns of all items against the reward; they may differ from item to item.

    Raises:
        DataError: a column has the name of a reward argument, or one that the reward needs is missing in some item.
    """
    kinds = {frozenset(item) for item in items}
    if kinds:
        reward.check_columns(frozenset.union(*kinds), prompt_key)
        reward.check_columns(frozenset.intersection(*kinds), prompt_key)


def check_group_size(reward: Reward, key: str, group_size: int) -> None:
    """Raise ``ConfigError`` where a reward that compares samples would get too few of them."""
    if group_size < reward.min_group_size:
        raise ConfigError(
            f"{key}={group_size}: reward {reward.name} compares the samples of a prompt; it needs "
            f"{reward.min_group_size} or more"
        )


def make_post_process(config: ExperimentConfig) -> Callable[[TrajectoryGroup], None] | None:
    """What is done to the rewards of a complete group; None where nothing is configured.

    Raises:
        ConfigError: ``reward.post_process`` is no function.
    """
    reward = config.reward
    buffer = reward.overlong.buffer_of(config.rollout.sampling.max_new_tokens)
    shapes = (reward.scale, reward.bias, buffer, reward.clip, reward.post_process)
    if shapes == (1.0, 0.0, 0, None, None):
        return None
    hook = None if reward.post_process is None else _load_hook(reward.post_process, reward.post_process_kwargs)
    return PostProcessor(reward, config.rollout.sampling.max_new_tokens, hook)


def _load_hook(path: str, kwargs: dict[str, Any]) -> PostProcessHook:
    library, spec = split_library(path)
    if library is not None:
        from areal_x.reward.adapters import adapt_post_process

        adapted: PostProcessHook = adapt_post_process(library, spec, kwargs)
        return adapted
    hook = load_object(path, "reward.post_process")
    if not callable(hook):
        raise ConfigError(f"reward.post_process={path!r} is not a function")
    return partial(hook, **kwargs) if kwargs else hook
