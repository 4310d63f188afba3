"""Which conversations reward models score, and what their scores make of a sample's reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from areal_x.api.config import DataConfig
from areal_x.api.records import Trajectory, TrajectoryGroup
from areal_x.api.reward_model_checks import RULE_PART
from areal_x.api.reward_records import LARGEST_REWARD, RewardOutcome
from areal_x.engine.reward_model.rendering import Messages

__all__ = ["ScoredSample", "prompt_of", "samples_to_score", "sum_outcomes"]


@dataclass(slots=True)
class ScoredSample:
    """A sample that the rule rewards have scored: the last trajectory of an outcome, and all that share it."""

    group: TrajectoryGroup
    last: Trajectory
    trajectories: list[Trajectory]
    rule: RewardOutcome

    def set_outcome(self, outcome: RewardOutcome) -> None:
        """Give every trajectory of the sample its final outcome."""
        for trajectory in self.trajectories:
            trajectory.outcome = outcome


def samples_to_score(groups: Sequence[TrajectoryGroup]) -> list[ScoredSample]:
    """The samples whose rule reward is there. One that failed, or did not apply, costs the reward models nothing."""
    samples: dict[int, ScoredSample] = {}
    for group in groups:
        for trajectory in group.trajectories:
            outcome = trajectory.outcome
            if outcome is None or outcome.status != "ok":
                continue
            sample = samples.setdefault(id(outcome), ScoredSample(group, trajectory, [], outcome))
            sample.last = trajectory
            sample.trajectories.append(trajectory)
    return list(samples.values())


def prompt_of(sample: ScoredSample, data: DataConfig) -> str | Messages:
    """What the policy was asked: the item's own text or messages, so that another model's template can render them.

    An item of a workflow that makes its prompts itself has none; then it is the trajectory's text.
    """
    prompt = sample.group.item.get(data.prompt_key)
    if isinstance(prompt, str):
        if data.system_prompt is None:
            return prompt
        return [{"role": "system", "content": data.system_prompt}, {"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        return prompt
    return sample.last.prompt


def sum_outcomes(
    rule: RewardOutcome,
    scores: Mapping[str, RewardOutcome],
    weights: Mapping[str, float],
    *,
    has_rule: bool = True,
    key: str | None = None,
) -> RewardOutcome:
    """The outcome of a sample: what its rule rewards gave, and the weighted scores of its reward models.

    If one failed, the whole failed: a sum without it would be another reward.

    Args:
        rule: ``ok``.
        scores, weights: of each reward model, by name.
        has_rule: false: no rule reward is configured, so ``rule`` gave no part.
        key: of evaluation: the value is the score of this reward model, or, for any other key, the rule's alone.
    """
    for name, score in scores.items():
        if score.status != "ok":
            return replace(score, error=f"reward model {name!r}: {score.error}")
    assert rule.value is not None
    own = {name: score.value for name, score in scores.items() if score.value is not None}
    added = sum(weights[name] * value for name, value in own.items())
    value = rule.value + added if key is None else own.get(key, rule.value)
    if not abs(value) <= LARGEST_REWARD:
        return RewardOutcome("error", error=f"the weighted sum of the rewards is {value}, no finite number (float32)")
    parts = dict(rule.parts)
    if has_rule:
        parts.setdefault(RULE_PART, rule.value)
    steps = [score.step_rewards for score in scores.values() if score.step_rewards]
    return replace(
        rule,
        value=value,
        parts=parts | own,
        values=rule.values | own,
        token_rewards=_with_last(rule.token_rewards, added),
        step_rewards=rule.step_rewards or (steps[0] if len(steps) == 1 else None),
    )


def _with_last(token_rewards: list[float] | None, added: float) -> list[float] | None:
    """A score of the whole completion stands at its last token."""
    if not token_rewards:
        return token_rewards
    return [*token_rewards[:-1], float(np.float64(token_rewards[-1]) + added)]
