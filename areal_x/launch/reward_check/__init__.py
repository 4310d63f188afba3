"""Tries a reward on data, before a run does. ``areal-x reward test`` is the same as a command.

data, completions ──▶ samples ──▶ runs (the run's own wrapper and pool, twice) ──▶ report ──▶ tables, HTML, JSON
                                                                                    ▲
                          source of the reward ──▶ static checks ──▶ findings ──────┘
"""

from __future__ import annotations

from areal_x.launch.reward_check.check import check_reward_function, check_reward_function_async
from areal_x.launch.reward_check.finding import Finding
from areal_x.launch.reward_check.options import CheckOptions
from areal_x.launch.reward_check.report import RewardReport

__all__ = ["CheckOptions", "Finding", "RewardReport", "check_reward_function", "check_reward_function_async"]
