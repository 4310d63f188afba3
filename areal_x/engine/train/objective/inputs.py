"""What the objective needs of a batch beside the policy's own log-probabilities.

Axis letters: N tokens of the batch, M trained tokens of a micro-batch, K trained tokens of the batch, S sequences.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from areal_x.api.config import AlgorithmConfig
from areal_x.api.records import NOT_GENERATED, TrainBatch
from areal_x.engine.train.objective.tokens import Correction

__all__ = ["LossInputs", "aggregation_shares", "loss_inputs"]


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Tensors on the device, of all tokens of a batch [N] or, from ``at``, of some [M]."""

    behaviour: torch.Tensor
    advantages: torch.Tensor
    sequence: torch.Tensor
    """int64."""
    num_sequences: int
    """S, the same in every part."""
    lag: torch.Tensor | None = None
    """int32."""
    scales: torch.Tensor | None = None
    """What a token's loss is multiplied by. None: 1."""
    shares: torch.Tensor | None = None
    """float64, what a token adds to the denominator of the loss. None: 1."""
    proximal: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    correction: Correction | None = None
    """Computed over the whole batch before."""

    def at(self, positions: torch.Tensor) -> LossInputs:
        """Those of the tokens at int64 [M]."""

        def pick(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.index_select(0, positions)

        done = self.correction
        return LossInputs(
            behaviour=self.behaviour.index_select(0, positions),
            advantages=self.advantages.index_select(0, positions),
            sequence=self.sequence.index_select(0, positions),
            num_sequences=self.num_sequences,
            lag=pick(self.lag),
            scales=pick(self.scales),
            shares=pick(self.shares),
            proximal=pick(self.proximal),
            reference=pick(self.reference),
            correction=None
            if done is None
            else Correction(
                done.weights.index_select(0, positions),
                {name: values.index_select(0, positions) for name, values in done.means.items()},
                {name: values.index_select(0, positions) for name, values in done.maxima.items()},
            ),
        )

    def with_correction(self, correction: Correction, positions: torch.Tensor) -> LossInputs:
        """These with a correction [K] of the tokens at ``positions`` int64 [K], and 0 elsewhere."""

        def spread(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(len(self.behaviour)).index_copy(0, positions, values)

        weights, means, maxima = correction
        spread_out = Correction(
            spread(weights),
            {name: spread(values) for name, values in means.items()},
            {name: spread(values) for name, values in maxima.items()},
        )
        return dataclasses.replace(self, correction=spread_out)


def loss_inputs(batch: TrainBatch, algorithm: AlgorithmConfig, version: int, device: torch.device) -> LossInputs:
    """Of a whole batch; ``version`` is that of the weights that are trained."""

    def on_device(values: npt.NDArray[np.floating] | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

    sequence_N = np.repeat(np.arange(len(batch.lengths), dtype=np.int64), batch.lengths)
    scales_N, shares_N = aggregation_shares(batch.loss_mask, sequence_N, algorithm.aggregation, algorithm.loss_length)
    lag_N = None
    if batch.versions is not None:
        lag_N = np.where(batch.versions == NOT_GENERATED, 0, np.maximum(version - batch.versions, 0)).astype(np.int32)
    behaviour, advantages = on_device(batch.logprobs), on_device(batch.advantages)
    assert behaviour is not None and advantages is not None
    return LossInputs(
        behaviour=behaviour,
        advantages=advantages,
        sequence=torch.from_numpy(sequence_N).to(device),
        num_sequences=len(batch.lengths),
        lag=None if lag_N is None else torch.from_numpy(lag_N).to(device),
        scales=on_device(scales_N),
        shares=None if shares_N is None else torch.from_numpy(shares_N).to(device),
        proximal=on_device(batch.proximal),
        reference=on_device(batch.reference),
    )


def aggregation_shares(
    loss_mask_N: npt.NDArray[np.bool_],
    sequence_N: npt.NDArray[np.int64],
    aggregation: str,
    loss_length: int | None,
) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.float64] | None]:
    """How the losses l of tokens become one, as sum(scale * l) / sum(share) over all tokens of an update, so that
    neither sum depends on how the update is cut. With n trained tokens in a token's sequence:

    | aggregation | scale | share | the loss is |
    | --- | --- | --- | --- |
    | token | 1 | 1 | the mean over tokens (DAPO, https://arxiv.org/abs/2503.14476) |
    | sequence | 1 / n | 1 / n | the mean of the sequences' means (GRPO, https://arxiv.org/abs/2402.03300) |
    | constant | 1 / loss_length | 1 / n | the mean of sum / loss_length (Dr. GRPO, https://arxiv.org/abs/2503.20783) |

    Sequences without a trained token do not count.

    Returns:
        Scales and shares, float64 [N]; ``None`` for 1.
    """
    if aggregation == "token":
        return None, None
    counts_S = np.bincount(sequence_N[loss_mask_N], minlength=int(sequence_N[-1]) + 1 if len(sequence_N) else 0)
    shares_N = 1.0 / np.maximum(counts_S, 1)[sequence_N]
    if aggregation == "sequence":
        return shares_N, shares_N
    assert loss_length is not None
    return np.full(len(sequence_N), 1.0 / loss_length), shares_N
