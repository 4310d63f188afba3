"""The Bradley-Terry loss: the probability that one answer is preferred is the sigmoid of the difference of scores.

R. A. Bradley and M. E. Terry, "Rank Analysis of Incomplete Block Designs" (1952); as the loss of a reward model in
L. Ouyang et al., "Training language models to follow instructions with human feedback" (https://arxiv.org/abs/2203.02155).
"""

from __future__ import annotations

import numpy as np
import torch

from areal_x.api.records import FloatArray, IntArray

__all__ = ["PREFERENCE_SUMS", "held_out_metrics", "preference_loss"]

PREFERENCE_SUMS = ("loss", "accuracy", "margin", "chosen_score", "rejected_score")
"""Names of the sums over pairs that ``preference_loss`` gives."""


def preference_loss(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss ``-log sigmoid(r_chosen - r_rejected)``, summed over pairs, and the sums named by ``PREFERENCE_SUMS``.

    Args:
        scores: [2 B], chosen and rejected by turns.

    Returns:
        The loss (float32 or wider), and float64 [5] without a graph. Equal scores are half an accurate pair.
    """
    chosen, rejected = scores.view(-1, 2).to(torch.promote_types(scores.dtype, torch.float32)).unbind(dim=1)
    margin = chosen - rejected
    loss = torch.nn.functional.softplus(-margin).sum()
    with torch.no_grad():
        accurate = 0.5 * (1.0 + margin.sign())
        sums = torch.stack([loss, accurate.sum(), margin.sum(), chosen.sum(), rejected.sum()]).to(torch.float64)
    return loss, sums


def held_out_metrics(scores: FloatArray, lengths: IntArray) -> dict[str, float]:
    """How well scores agree with held-out preferences, and with mere length; metrics named ``rm/...``.

    Args:
        scores: [2 B], chosen and rejected by turns.
        lengths: [2 B], tokens of these sequences.
    """
    pairs = scores.astype(np.float64).reshape(-1, 2)
    margin = pairs[:, 0] - pairs[:, 1]
    metrics = {
        "held_out_loss": np.logaddexp(0.0, -margin).mean(),
        "held_out_accuracy": 0.5 * (1.0 + np.sign(margin)).mean(),
        "held_out_margin": margin.mean(),
        "held_out_score_std": pairs.std(),
    }
    longer = np.diff(lengths.astype(np.int64).reshape(-1, 2), axis=1)[:, 0]
    differ = longer != 0
    if differ.any():
        metrics["longer_chosen"] = (longer[differ] < 0).mean()
        metrics["longer_preferred"] = 0.5 * (1.0 - np.sign(margin * np.sign(longer))[differ]).mean()
    return {f"rm/{name}": float(value) for name, value in metrics.items()}
