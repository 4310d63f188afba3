"""Configuration of the algorithm: advantages, objective, corrections, and the models beside the policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "BASELINES",
    "CORRECTIONS",
    "KL_ESTIMATORS",
    "POLICY_LOSSES",
    "SCALES",
    "AlgorithmConfig",
    "CriticConfig",
    "ReferenceConfig",
]

ADVANTAGES = ("group", "gae", "reinforce_pp", "reinforce_pp_baseline", "raft")
"""What makes advantages of rewards (``algorithm.advantage``)."""
BASELINES = ("group_mean", "leave_one_out", "batch_mean", "none")
"""What may be taken from a reward (``algorithm.baseline``)."""
SCALES = ("group_std", "batch_std", "none")
"""What the rest may be divided by (``algorithm.scale_by``)."""
POLICY_LOSSES = ("clip", "reinforce", "gspo", "cispo", "sapo", "likelihood")
"""The objective of a token (``algorithm.policy_loss``)."""
CORRECTIONS = ("none", "decoupled", "tis", "icepop", "mis", "sequence_mask", "m2po")
"""What corrects for older weights and another engine's numbers (``algorithm.correction``)."""
AGGREGATIONS = ("token", "sequence", "constant")
"""How the losses of tokens become one (``algorithm.aggregation``)."""
KL_ESTIMATORS = ("k1", "k2", "k3")
"""Estimates of the KL divergence to the reference, from sampled tokens (``algorithm.kl_estimator``)."""


@dataclass
class AlgorithmConfig:
    name: str = "grpo"
    """What the run calls its algorithm; what it does is said by the fields below."""
    advantage: str = "group"
    """From rewards to advantages: ``group`` (``baseline`` and ``scale_by``), ``gae`` (needs the critic),
    ``reinforce_pp``, ``reinforce_pp_baseline``, ``raft``, or a function of yours: ``file.py:function``."""
    advantage_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments bound to that function by name."""
    baseline: str = "group_mean"
    """Taken from each reward: ``group_mean``, ``leave_one_out`` (mean of the group's others), ``batch_mean``,
    ``none``."""
    scale_by: str = "group_std"
    """Divides what is left: ``group_std``, ``batch_std`` (of the whole step), ``none``."""
    discount: float = 1.0
    """Of rewards that come later, per token (gamma), for ``gae`` and ``reinforce_pp``."""
    gae_lambda: float = 1.0
    """Between one-step errors of the critic (0) and whole returns (1)."""
    policy_loss: str = "clip"
    """The objective of a token: ``clip`` (PPO), ``reinforce``, ``gspo``, ``cispo``, ``sapo``, ``likelihood``, or a
    function of yours: ``file.py:function``."""
    policy_loss_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments bound to that function by name."""
    clip_low: float = 0.2
    """Ratios below ``1 - clip_low`` are clipped."""
    clip_high: float = 0.2
    """Ratios above ``1 + clip_high`` are clipped."""
    dual_clip: float | None = None
    """Bounds the loss of a negative advantage at so many times it. Default: no bound."""
    correction: str = "decoupled"
    """``none``: ratios to the policy that sampled. Else ratios to the policy at the start of the step, and a weight or
    mask by its ratio to the one that sampled: ``decoupled``, ``tis``, ``icepop``, ``mis``, ``sequence_mask``, ``m2po``,
    or a function of yours: ``file.py:function``."""
    correction_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments bound to that function by name, such as ``high``, the cap of a weight."""
    aggregation: str = "token"
    """One loss of many tokens: ``token`` (mean of all), ``sequence`` (mean of the sequences' means), ``constant``
    (sum over ``loss_length``, mean of the sequences)."""
    loss_length: int | None = None
    """Tokens that a sequence's sum is divided by with ``constant``. Default: ``rollout.sampling.max_new_tokens``."""
    kl_coefficient: float = 0.0
    """Of the KL divergence to the reference model; 0 keeps no reference."""
    kl_estimator: str = "k3"
    """``k1`` (log ratio), ``k2`` (half its square) or ``k3`` (never negative, small variance)."""
    kl_in: str = "loss"
    """``loss``: added to the loss. ``reward``: taken from the reward of each token, before advantages."""
    entropy_coefficient: float = 0.0
    """Of the policy's entropy, which is added to the objective."""
    num_mini_batches: int = 1
    """Optimiser steps of one pass over a batch."""
    num_epochs: int = 1
    """Passes over a batch."""
    shuffle: bool = True
    """Deal the groups out to mini-batches in an order of the run's seed, another in each pass."""


@dataclass
class ReferenceConfig:
    """The frozen policy that ``algorithm.kl_coefficient`` keeps the trained one near."""

    path: str | None = None
    """A directory in Hugging Face format or a hub name. Default: the policy as it is before the first step."""
    offload: bool = False
    """Its weights are on the device only while they are used."""
    ema_decay: float | None = None
    """After each update: reference = decay * reference + (1 - decay) * policy. Default: it never moves."""
    update_every_steps: int = 1
    """Steps between two such updates; with ``ema_decay=0`` the policy is copied."""


@dataclass
class CriticConfig:
    """The value model of ``algorithm.advantage=gae``, or of an advantage function of your own."""

    enabled: bool = False
    """For an advantage function of your own: its samples have ``values``, and it gives ``returns``. ``gae`` always has
    a critic."""
    path: str | None = None
    """A causal language model (its body, with a new head) or a token or sequence classification model of one label.
    Default: the policy as it is before the first step."""
    learning_rate: float = 1e-4
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    policy_starts_after: int = 0
    """So many steps train the critic alone first."""
    clip: float | None = 0.2
    """Values move at most so far from those of the step's start in the loss. None: no bound."""
    offload: bool = False
    """Its weights and optimiser are on the device only while they are used."""
