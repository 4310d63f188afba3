"""The critic's loss: a pure function over M trained tokens."""

from __future__ import annotations

import torch

__all__ = ["VALUE_SUMS", "value_loss"]

VALUE_SUMS = ("loss", "clip_fraction")
"""Names of the sums over tokens that ``value_loss`` gives."""


def value_loss(
    values: torch.Tensor, returns: torch.Tensor, old_values: torch.Tensor, clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped loss of a value, summed over tokens:

        1/2 max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2)

    J. Schulman et al., "Proximal Policy Optimization Algorithms" (https://arxiv.org/abs/1707.06347), in the form of the
    authors' implementation (https://arxiv.org/abs/2005.12729, section 3). A value that has moved further than ``clip``
    towards its return gives no gradient any more.

    Args:
        values: V [M], with gradient.
        returns: R [M].
        old_values: V_old [M], at the start of the step.
        clip: None: the plain squared error.

    Returns:
        The loss, and float64 [2] without a graph, named by ``VALUE_SUMS``: ``clip_fraction`` counts the tokens whose
        loss is that of the clamped value.
    """
    error = (values - returns).square()
    if clip is None:
        loss = 0.5 * error.sum()
        return loss, torch.stack([loss.detach(), torch.zeros_like(loss)]).to(torch.float64)
    clamped = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    loss = 0.5 * torch.maximum(error, clamped).sum()
    return loss, torch.stack([loss.detach(), (clamped > error).sum().to(loss.dtype)]).to(torch.float64)
