"""Rewards that another machine gives: HTTP servers, asked with a guard on where the calls may go."""

from areal_x.reward.remote.client import RemoteRewardError
from areal_x.reward.remote.remote_reward import RemoteReward

__all__ = ["RemoteReward", "RemoteRewardError"]
