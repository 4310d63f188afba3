"""Exact match, the reward of made arithmetic problems."""

from __future__ import annotations

from areal_x.api.reward_records import RewardResult
from areal_x.reward.registry import register_reward

__all__ = ["arithmetic"]


@register_reward("arithmetic", datasets=["arithmetic"], extracts="the whole completion", returns="1 or 0")
def arithmetic(completions: str, answer: object) -> RewardResult:
    """1 if the completion, without the blanks around it, is the ``answer`` column; else 0."""
    found = completions.strip()
    return RewardResult(float(found == str(answer).strip()), metadata={"answer": found[:200]} if found else {})
