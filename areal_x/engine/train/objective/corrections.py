"""Corrections for tokens that another policy than the one at the start of the step sampled: older weights, and an
inference engine whose numbers differ a little. Pure functions of M trained tokens.

Let w = pi_prox / mu: the policy at the start of the step over the one that sampled. A correction makes of w what each
token's loss is multiplied by; 0 masks the token, which still counts in the denominator of the loss. With
``only_stale=True`` tokens of the newest weights are left as they are (their w counts as 1), so that the engine's
arithmetic alone is not corrected.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from areal_x.api.errors import ConfigError
from areal_x.engine.train.objective.tokens import Correction, LossTokens, where_true

__all__ = ["CORRECTIONS", "WHOLE_BATCH", "decoupled", "icepop", "m2po", "mis", "sequence_mask", "tis"]


def decoupled(tokens: LossTokens, *, high: float = 5.0, only_stale: bool = False) -> Correction:
    """min(w, high): the decoupled objective (Hilton et al. 2021, https://arxiv.org/abs/2110.00641; AReaL,
    https://arxiv.org/abs/2505.24298), with a loose cap."""
    return _truncated(tokens, high, only_stale)


def tis(tokens: LossTokens, *, high: float = 2.0, only_stale: bool = False) -> Correction:
    """min(w, high): truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training", https://fengyao.notion.site/off-policy-rl), with a tight cap."""
    return _truncated(tokens, high, only_stale)


def icepop(tokens: LossTokens, *, low: float = 0.5, high: float = 5.0, only_stale: bool = False) -> Correction:
    """w where low <= w <= high, else 0: IcePop (Ling team 2025, "Every step evolves",
    https://arxiv.org/abs/2510.18855) masks tokens that the engine and the trainer disagree on, either way."""
    return _banded(tokens, low, high, only_stale)


def mis(tokens: LossTokens, *, high: float = 2.0, low: float = 0.0, only_stale: bool = False) -> Correction:
    """w where low <= w <= high, else 0: masked importance sampling (Liu et al. 2025, as ``sequence_mask``) of single
    tokens (TRL's ``token_mask``); by default only what pi_prox finds much more probable than mu did is dropped."""
    return _banded(tokens, low, high, only_stale)


def sequence_mask(
    tokens: LossTokens, *, low: float = 0.0, high: float = 3.0, ratio: str = "product", only_stale: bool = False
) -> Correction:
    """W where low <= W <= high, else 0, for all tokens of a sequence alike (TRL's ``sequence_mask``; Liu et al. 2025,
    "When speed kills stability", https://richardli.xyz/rl-collapse). W is the product of the sequence's w, or with
    ``ratio="geometric"`` their geometric mean, which does not depend on the length.
    """
    if ratio not in ("product", "geometric"):
        raise ConfigError(f"algorithm.correction_kwargs.ratio={ratio!r}: must be product or geometric")
    drift = _drift(tokens, only_stale)
    whole = torch.exp(tokens.sequence_sum(drift) if ratio == "product" else tokens.sequence_mean(drift))
    return Correction(_inside(whole, low, high))


def m2po(tokens: LossTokens, *, threshold: float = 0.04, only_stale: bool = False) -> Correction:
    """Second-moment trust policy optimization (https://arxiv.org/abs/2510.01161): over the whole batch, the tokens with
    the largest (log w)^2 are masked, as few as it takes until the mean of the others is at most ``threshold``;
    equal ones share their fate. The others have the weight w."""
    drift = _drift(tokens, only_stale)
    squares = drift.square()
    ascending = np.sort(squares.cpu().numpy())  # Many times faster than torch's on a CPU.
    # The mean of the k smallest never falls with k.
    means = np.cumsum(ascending, dtype=np.float64) / np.arange(1, len(ascending) + 1)
    num_kept = int(np.count_nonzero(means <= threshold))
    limit = float(ascending[num_kept]) if num_kept < len(ascending) else torch.inf
    kept = where_true(torch.lt, squares, limit)
    return Correction(torch.exp(drift * kept) * kept, {"behaviour_second_moment": squares})


CORRECTIONS: dict[str, Callable[..., Correction]] = {
    "decoupled": decoupled,
    "tis": tis,
    "icepop": icepop,
    "mis": mis,
    "sequence_mask": sequence_mask,
    "m2po": m2po,
}
"""By the names of ``algorithm.correction``; ``none`` has no function."""

WHOLE_BATCH = ("m2po",)
"""Those that compare tokens of different sequences, so they get all tokens of a step at once, as a user's function."""


def _drift(tokens: LossTokens, only_stale: bool) -> torch.Tensor:
    """log w."""
    if not only_stale:
        return tokens.drift
    return torch.zeros_like(tokens.drift) if tokens.lag is None else torch.where(tokens.lag > 0, tokens.drift, 0.0)


def _truncated(tokens: LossTokens, high: float, only_stale: bool) -> Correction:
    weights = torch.exp(_drift(tokens, only_stale))
    return Correction(
        weights.clamp(max=high), {"behaviour_weight_capped_fraction": where_true(torch.gt, weights, high)}
    )


def _banded(tokens: LossTokens, low: float, high: float, only_stale: bool) -> Correction:
    return Correction(_inside(torch.exp(_drift(tokens, only_stale)), low, high))


def _inside(weights: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """``weights`` where they are in the band, else 0; also where they have overflown."""
    kept = where_true(torch.ge, weights, low) * where_true(torch.le, weights, high)
    return weights.clamp(max=high) * kept
