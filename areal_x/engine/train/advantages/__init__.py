"""From rewards to advantages: one pure function for each way, in numpy alone."""

from __future__ import annotations

from areal_x.engine.train.advantages.built_in import ADVANTAGE_FUNCTIONS, load_advantage
from areal_x.engine.train.advantages.divergence import kl_estimate
from areal_x.engine.train.advantages.groups import group, group_advantages, raft
from areal_x.engine.train.advantages.tokens import gae, reinforce_pp, reinforce_pp_baseline

__all__ = [
    "ADVANTAGE_FUNCTIONS",
    "gae",
    "group",
    "group_advantages",
    "kl_estimate",
    "load_advantage",
    "raft",
    "reinforce_pp",
    "reinforce_pp_baseline",
]
