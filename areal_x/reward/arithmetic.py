"""Exact match, the reward of made arithmetic problems."""

from __future__ import annotations

from areal_x.reward.registry import register_reward

__all__ = ["arithmetic"]


@register_reward("arithmetic", datasets=["arithmetic"], extracts="the whole completion", returns="1 or 0")
def arithmetic(completions: str, answer: object) -> float:
    """1 if the completion, without the blanks around it, is the ``answer`` column; else 0."""
    return 1.0 if completions.strip() == str(answer).strip() else 0.0
