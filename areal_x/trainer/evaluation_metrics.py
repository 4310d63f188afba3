"""What the samples of one held-out set say: a pure function from groups to ``eval/<set>/...``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from areal_x.api.records import Trajectory, TrajectoryGroup
from areal_x.api.reward_model_checks import RULE_PART
from areal_x.api.reward_records import RewardOutcome
from areal_x.trainer.answer_votes import majority_at_k, pass_at_k, stated_answer, votes_of

__all__ = ["accuracy", "evaluation_metrics", "scored_samples", "verdicts", "version_metrics"]

_ACCURACY_PARTS = ("accuracy", "acc")
_ROUNDING = 1e-6


def verdicts(outcomes: Sequence[RewardOutcome]) -> list[float | None]:
    """How right each sample is: its part ``accuracy`` or ``acc``, ``None`` without it; where no sample has such a part,
    a (rule) reward that is 1 or 0. All ``None``: the reward says no such thing."""
    parts = [next((o.parts[name] for name in _ACCURACY_PARTS if name in o.parts), None) for o in outcomes]
    if any(part is not None for part in parts):
        return parts
    values = np.array([outcome.parts.get(RULE_PART, outcome.value) for outcome in outcomes])
    is_zero_or_one = np.minimum(np.abs(values), np.abs(values - 1.0)) <= _ROUNDING
    return values.tolist() if is_zero_or_one.all() else [None] * len(outcomes)


def accuracy(outcomes: Sequence[RewardOutcome]) -> float | None:
    """The mean of ``verdicts``; ``None`` where there are none."""
    found = [value for value in verdicts(outcomes) if value is not None]
    return float(np.mean(found)) if found else None


def scored_samples(groups: Sequence[TrajectoryGroup]) -> list[list[Trajectory]]:
    """The scored samples of each group that has any; an episode of several trajectories counts once, by its last."""
    samples = [list({t.episode_id: t for t in group.trajectories}.values()) for group in groups]
    scored = [[t for t in of_group if t.outcome is not None and t.outcome.status == "ok"] for of_group in samples]
    return [of_group for of_group in scored if of_group]


def evaluation_metrics(
    groups: Sequence[TrajectoryGroup],
    dataset: str,
    num_asked: int,
    group_size: int = 1,
    pass_at: Sequence[int] = (),
    majority_at: Sequence[int] = (),
) -> dict[str, float]:
    """Accuracy, reward, parts, pass@k, majority@k and lengths over the samples that were scored; the others are
    counted, not taken for wrong answers.

    There is an accuracy where the reward reports one, or is 1 or 0; pass@k where each sample is right or wrong;
    majority@k where the reward also says which answer it found. Both are means over the prompts that have at least k
    scored samples; ``<name>_left_out`` counts the prompts that have fewer, if there are any.

    Args:
        groups: what the episodes gave.
        dataset: the name in ``eval/<dataset>/...``.
        num_asked: episodes that were started, ``group_size`` of each prompt.
        pass_at, majority_at: the k of each.
    """
    samples = scored_samples(groups)
    outcomes = [[t.outcome for t in of_group if t.outcome is not None] for of_group in samples]
    scored = [outcome for of_group in outcomes for outcome in of_group]
    metrics = {
        part: float(np.mean([outcome.parts[part] for outcome in scored if part in outcome.parts]))
        for part in sorted({part for outcome in scored for part in outcome.parts})
    }
    metrics |= {"num_samples": float(len(scored)), "num_unscored": float(num_asked - len(scored))}
    if scored:
        flat = [trajectory for of_group in samples for trajectory in of_group]
        metrics |= {
            "reward": float(np.mean([outcome.value for outcome in scored])),
            "completion_tokens": float(np.mean([trajectory.num_sampled for trajectory in flat])),
            "truncated_share": float(np.mean([trajectory.stop_reason == "length" for trajectory in flat])),
        }
        right = accuracy(scored)
        metrics |= {} if right is None else {"accuracy": right}
        metrics |= _of_several(outcomes, num_asked // group_size, pass_at, majority_at)
    return {f"eval/{dataset}/{name}": value for name, value in metrics.items()}


def _of_several(
    outcomes: Sequence[Sequence[RewardOutcome]], num_prompts: int, pass_at: Sequence[int], majority_at: Sequence[int]
) -> dict[str, float]:
    """pass@k and majority@k, over the samples with a verdict; nothing where one is neither right nor wrong."""
    found = iter(verdicts([outcome for of_prompt in outcomes for outcome in of_prompt]))
    judged = [
        [(outcome, value) for outcome, value in zip(of_prompt, found, strict=False) if value is not None]
        for of_prompt in outcomes
    ]
    values = [value for of_prompt in judged for _, value in of_prompt]
    if not values or np.minimum(np.abs(values), np.abs(np.subtract(values, 1.0))).max() > _ROUNDING:
        return {}
    rights = [[value > 0.5 for _, value in of_prompt] for of_prompt in judged]
    votes = [
        votes_of([outcome for outcome, _ in of_prompt], right) for of_prompt, right in zip(judged, rights, strict=True)
    ]
    metrics: dict[str, float] = {}
    for k in pass_at:
        estimates = [pass_at_k(len(right), sum(right), k) for right in rights if len(right) >= k]
        metrics |= _mean_of(f"pass@{k}", estimates, num_prompts)
    if any(stated_answer(outcome) is not None for of_prompt in judged for outcome, _ in of_prompt):
        for k in majority_at:
            estimates = [majority_at_k(of_prompt, k) for of_prompt in votes if len(of_prompt) >= k]
            metrics |= _mean_of(f"majority@{k}", estimates, num_prompts)
    return metrics


def _mean_of(name: str, estimates: Sequence[float], num_prompts: int) -> dict[str, float]:
    """The mean over the prompts that have one, and how many have none."""
    metrics = {name: float(np.mean(estimates))} if estimates else {}
    if len(estimates) < num_prompts:
        metrics[f"{name}_left_out"] = float(num_prompts - len(estimates))
    return metrics


def version_metrics(groups: Sequence[TrajectoryGroup], dataset: str) -> dict[str, float]:
    """Versions of the weights that sampled: the oldest, the newest, and the share of samples of one version alone."""
    spans = [[span.version for span in t.version_spans] for of_group in scored_samples(groups) for t in of_group]
    spans = [versions for versions in spans if versions]
    if not spans:
        return {}
    return {
        f"eval/{dataset}/oldest_version": float(min(map(min, spans))),
        f"eval/{dataset}/newest_version": float(max(map(max, spans))),
        f"eval/{dataset}/one_version_share": float(np.mean([min(versions) == max(versions) for versions in spans])),
    }
