"""Losses of the policy: pure functions of M trained tokens, each by the equation of its paper.

Let pi be the policy that is trained, A the advantage and r = pi / anchor, where the anchor is the policy at the start
of the step, or, with ``correction=none``, the one that sampled. sg[.] has no gradient. What is given below is the
objective J of one token, and the loss is -J. A correction's weight multiplies it afterwards.

Where autograd of the formula would be slow (minima, clamps), the loss is given with its slope in log pi.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from areal_x.engine.train.objective.tokens import LossTokens, TokenLoss, where_true

__all__ = ["LOSSES", "cispo", "clip", "gspo", "likelihood", "reinforce", "sapo"]


def clip(tokens: LossTokens, *, clip_low: float, clip_high: float, dual_clip: float | None = None) -> TokenLoss:
    """PPO (https://arxiv.org/abs/1707.06347); with ``clip_high`` above ``clip_low``, DAPO's clip-higher
    (https://arxiv.org/abs/2503.14476):

        J = min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

    and with ``dual_clip`` = c (https://arxiv.org/abs/1912.09729), where A < 0: J = max(that, c A).
    """
    return _clipped(tokens, tokens.ratio_value, clip_low, clip_high, dual_clip)


def gspo(tokens: LossTokens, *, clip_low: float, clip_high: float) -> TokenLoss:
    """Group sequence policy optimization (https://arxiv.org/abs/2507.18071) in its form of tokens: the ratio of a
    sequence, the geometric mean over its trained tokens, is clipped for all of them together.

        s = exp(mean of log r over the sequence),    s_t = sg[s] pi / sg[pi],
        J = min(s_t A, clip(s_t, 1 - clip_low, 1 + clip_high) A)

    Its gradient is that of the paper's sequence form where a sequence's tokens have one advantage and
    ``aggregation=sequence``.
    """
    ratio = torch.exp(tokens.sequence_mean(tokens.logprobs.detach() - tokens.anchor))
    losses, means, maxima = _clipped(tokens, ratio, clip_low, clip_high, None)
    return TokenLoss(losses, {**means, "sequence_ratio_mean": ratio}, {**maxima, "sequence_ratio_max": ratio})


def reinforce(tokens: LossTokens) -> TokenLoss:
    """REINFORCE (Williams 1992) with a weight for tokens of another policy than pi, nothing clipped:

        J = sg[r] A log pi

    Its gradient is that of r A. In a step of one update r is 1 after a correction, and pi / mu without one.
    """
    return TokenLoss(-(tokens.ratio_value * tokens.advantages) * tokens.logprobs)


def cispo(tokens: LossTokens, *, clip_low: float, clip_high: float) -> TokenLoss:
    """Clipped importance sampling (MiniMax-M1, https://arxiv.org/abs/2506.13585): the weight is clipped, not the
    gradient, so every token goes on teaching.

        J = sg[clip(r, 1 - clip_low, 1 + clip_high)] A log pi

    The paper has no lower bound: ``clip_low=1``.
    """
    ratio = tokens.ratio_value
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    means = {
        "clip_fraction_low": where_true(torch.lt, ratio, 1.0 - clip_low),
        "clip_fraction_high": where_true(torch.gt, ratio, 1.0 + clip_high),
    }
    return TokenLoss(-(weight * tokens.advantages) * tokens.logprobs, means)


def sapo(tokens: LossTokens, *, tau_pos: float = 1.0, tau_neg: float = 1.05) -> TokenLoss:
    """Soft adaptive policy optimization (https://arxiv.org/abs/2511.20347): a smooth gate in place of a clip.

        J = 4 / tau sigmoid(tau (r - 1)) A,    tau = tau_pos where A > 0, else tau_neg

    The gradient is that of r A times 4 p (1 - p), p the sigmoid: 1 at r = 1, and less the farther r is from it.
    """
    ratio, advantages = tokens.ratio_value, tokens.advantages
    tau = where_true(torch.gt, advantages, 0.0) * (tau_pos - tau_neg) + tau_neg
    gate = torch.sigmoid(tau * (ratio - 1.0))
    nearness = 4.0 * gate * (1.0 - gate)
    losses = _with_slope(-4.0 / tau * gate * advantages, -nearness * ratio * advantages, tokens.logprobs)
    return TokenLoss(losses, {"soft_gate_mean": nearness})


def likelihood(tokens: LossTokens) -> TokenLoss:
    """Negative log-likelihood of the samples that an advantage of 1 selects, 0 leaves out (RAFT,
    https://arxiv.org/abs/2304.06767):

        J = A log pi
    """
    return TokenLoss(
        -tokens.advantages * tokens.logprobs, {"selected_fraction": where_true(torch.ne, tokens.advantages, 0.0)}
    )


LOSSES: dict[str, Callable[..., TokenLoss]] = {
    "clip": clip,
    "reinforce": reinforce,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "likelihood": likelihood,
}
"""By the names of ``algorithm.policy_loss``."""


def _clipped(
    tokens: LossTokens, ratio: torch.Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> TokenLoss:
    """The clipped objective of a ratio whose slope in log pi is the ratio itself."""
    advantages = tokens.advantages
    unclipped = ratio * advantages
    surrogate = torch.minimum(unclipped, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)
    clipped = where_true(torch.lt, surrogate, unclipped)
    above = clipped * where_true(torch.gt, advantages, 0.0)
    means = {"clip_fraction_low": clipped - above, "clip_fraction_high": above}
    if dual_clip is not None:
        bound = torch.where(advantages < 0, dual_clip * advantages, -torch.inf)
        bounded = where_true(torch.lt, surrogate, bound)
        means["dual_clip_fraction"] = bounded
        surrogate, clipped = torch.maximum(surrogate, bound), torch.maximum(clipped, bounded)
    return TokenLoss(_with_slope(-surrogate, unclipped * (clipped - 1.0), tokens.logprobs), means)


def _with_slope(losses: torch.Tensor, slopes: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """``losses``, with the gradient ``slopes`` in ``logprobs``."""
    return losses + slopes * (logprobs - logprobs.detach())
