"""Configuration of checkpoints and of evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["CheckpointConfig", "EvaluationConfig", "EvaluationSetConfig", "SamplingConfig"]


@dataclass
class SamplingConfig:
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)


@dataclass
class CheckpointConfig:
    every_steps: int = 20
    """Steps between two checkpoints; the last step writes one, too. 0: none."""
    keep_last: int = 2
    """So many of the newest are kept."""
    best_metric: str | None = None
    """Also keep the best by this metric of an evaluation, such as ``eval/<set>/accuracy``, as far as there was one."""
    best_is: str = "highest"
    """``highest`` or ``lowest``."""
    keep_best: int = 1
    """So many of the best are kept."""
    export_every_steps: int = 0
    """Steps between two exports of the policy in Hugging Face format, under ``exports/``. 0: the last one only."""
    max_failures_in_a_row: int = 3
    """So many checkpoints that could not be written, one after another, stop the run."""


@dataclass
class EvaluationSetConfig:
    """One data set of an evaluation; what is not said here is as in ``evaluation`` and ``data``."""

    path: str = "???"
    """As ``data.path``."""
    split: str = "test"
    subset: str | None = None
    data_name: str | None = None
    """As ``data.name``: selects the built-in reward."""
    prompt_key: str | None = None
    limit: int | None = None
    """Items used."""
    group_size: int | None = None
    """Samples of one prompt."""
    sampling: SamplingConfig | None = None
    """All of it: what is left out has the defaults of sampling."""
    reward_fn: str | None = None
    """As ``reward.fn``."""
    reward_key: str | None = None
    """As ``reward.eval_reward_key``."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """As ``data.kwargs``, and where ``path`` is ``data.path`` on top of it."""


@dataclass
class EvaluationConfig:
    every_steps: int = 0
    """0: before and after the run only."""
    limit: int | None = 256
    """Held-out items used."""
    group_size: int = 1
    """Samples of one prompt."""
    pass_at: list[int] = field(default_factory=list)
    """The k of ``pass@k``. Default: 1, and ``group_size`` when it is above 1."""
    majority_at: list[int] = field(default_factory=list)
    """The k of ``majority@k``. Default: ``group_size`` when it is above 2."""
    updates: str = "hold"
    """``hold``: while an evaluation goes on, training does too, but new weights wait, so one version is measured.
    ``pass``: new weights go live; the versions that sampled are reported."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    sets: dict[str, EvaluationSetConfig] = field(default_factory=dict)
    """Several data sets by name, in place of ``data.eval_path``."""
