"""The run's reward, from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from areal_x.api.config import ExperimentConfig, RewardConfig, RewardPartConfig
from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import load_object
from areal_x.api.records import TrajectoryGroup
from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.api.reward_base import Reward
from areal_x.api.reward_set import RewardSet, WeightedReward
from areal_x.process_pool import ProcessPool
from areal_x.reward.registry import get_reward_fn, split_library
from areal_x.rollout.dataset import Items
from areal_x.rollout.post_process import PostProcessHook, PostProcessor

__all__ = ["build_reward", "make_post_process", "reward_functions", "start_reward"]


def reward_functions(reward: RewardConfig, dataset: str | None) -> dict[str, Callable[..., Any]]:
    """The functions of ``reward.rewards`` by name; of a single reward, under the empty name.

    Raises:
        ConfigError: an unknown name, or an option that the reward does not take.
    """
    if not reward.rewards:
        return {"": _function(reward.fn, reward, dataset)}
    return {name: _function(_name_of_part(name, part), part, dataset) for name, part in reward.rewards.items()}


def _function(name: str | None, reward: RewardConfig | RewardPartConfig, dataset: str | None) -> Callable[..., Any]:
    """The adapters of other libraries have to know themselves whether they are called with whole groups."""
    is_adapted = name is not None and split_library(name)[0] is not None
    group = {"group": reward.group} if is_adapted and reward.group is not None else {}
    return get_reward_fn(name, dataset=dataset, **(group | reward.kwargs))


def _name_of_part(name: str, part: RewardPartConfig) -> str | None:
    if part.fn is not None:
        return part.fn
    return None if name == "accuracy" else name


def build_reward(reward: RewardConfig, dataset: str | None, pool: ProcessPool) -> Reward:
    """The configured reward, or the weighted set of several, with synchronous ones in ``pool``; not yet started."""
    functions = reward_functions(reward, dataset)
    if not reward.rewards:
        return AsyncRewardWrapper(
            functions[""],
            reward.timeout_seconds,
            pool=pool,
            reward_key=reward.reward_key,
            group=reward.group,
            score_truncated=reward.score_truncated,
        )
    members = []
    for name, part in reward.rewards.items():
        wrapper = AsyncRewardWrapper(
            functions[name],
            part.timeout_seconds or reward.timeout_seconds,
            pool=pool,
            reward_key=part.reward_key,
            group=part.group,
            score_truncated=reward.score_truncated,
        )
        members.append(WeightedReward(name, wrapper, part.weight))
    return RewardSet(members, reward.reward_key)


async def start_reward(config: ExperimentConfig, items: Items, stack: AsyncExitStack) -> Reward:
    """The run's reward on the run's process pool, its modules imported before any deadline runs; closed by ``stack``.

    Raises:
        ConfigError: the reward cannot be built or started.
        DataError: the columns of ``items`` do not fit it.
    """
    pool = ProcessPool(
        num_workers=config.reward.num_workers,
        memory_limit_bytes=int(config.reward.memory_limit_gib * 2**30),
    )
    stack.push_async_callback(pool.close)
    reward = build_reward(config.reward, items.name, pool)
    reward.check_columns(items[0].keys(), config.data.prompt_key)
    stack.push_async_callback(reward.close)
    await reward.start()
    return reward


def make_post_process(config: ExperimentConfig) -> Callable[[TrajectoryGroup], None] | None:
    """What is done to the rewards of a complete group; None where nothing is configured.

    Raises:
        ConfigError: ``reward.post_process`` is no function.
    """
    reward = config.reward
    shapes = (reward.scale, reward.bias, reward.overlong.buffer_tokens, reward.clip, reward.post_process)
    if shapes == (1.0, 0.0, 0, None, None):
        return None
    hook = None if reward.post_process is None else _load_hook(reward.post_process, reward.kwargs)
    return PostProcessor(reward, config.rollout.sampling.max_new_tokens, hook)


def _load_hook(path: str, kwargs: dict[str, Any]) -> PostProcessHook:
    library, spec = split_library(path)
    if library is not None:
        from areal_x.reward.adapters import adapt_post_process

        adapted: PostProcessHook = adapt_post_process(library, spec, kwargs)
        return adapted
    hook: PostProcessHook = load_object(path, "reward.post_process")
    if not callable(hook):
        raise ConfigError(f"reward.post_process={path!r} is not a function")
    return hook
