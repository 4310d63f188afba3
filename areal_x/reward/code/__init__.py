"""The reward for programs: finds the program, runs it in the sandbox on the item's tests, and scores how it did."""

from areal_x.reward.code.reward import CodeReward

__all__ = ["CodeReward"]
