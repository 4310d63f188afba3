"""Built-in rewards and the registry that selects them by name or data set."""

from areal_x.reward.registry import RewardEntry, get_reward_fn, list_rewards, register_reward

__all__ = ["RewardEntry", "get_reward_fn", "list_rewards", "register_reward"]
