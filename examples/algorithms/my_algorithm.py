"""An algorithm of one's own: a function that makes advantages of rewards.

What it does: a sample's advantage is its rank in its group, from -1 (the worst) to 1 (the best), so that no reward,
however large, counts more than its place. What is worse than the middle counts less than what is better.
`algorithm/ranked.yaml` is its preset.

Command:  areal-x train ./compare.yaml algorithm=ranked, or beside others: python compare.py --algorithms grpo,ranked
Hardware: 2 CPU cores, no GPU, no network.
"""

import numpy as np


def ranked(samples, negative_weight=1.0):
    """One advantage for each sample. `samples` has rewards, group_ids, lengths and more (`RewardedSamples`); other
    arguments come from `algorithm.advantage_kwargs`. A reward of NaN marks a sample that must not count."""
    advantages = np.zeros(len(samples))
    for group in np.unique(samples.group_ids):
        members = np.flatnonzero((samples.group_ids == group) & samples.counted)
        rewards = samples.rewards[members]
        better_than = (rewards[:, None] > rewards).sum(axis=1)
        worse_than = (rewards[:, None] < rewards).sum(axis=1)
        advantages[members] = (better_than - worse_than) / max(1, len(members) - 1)
    return np.where(advantages < 0, negative_weight * advantages, advantages)
