"""Looks at the batch of a step that was skipped, one sequence after another: which of them is not finite, and where.

    from areal_x.trainer.replay import replay

    for found in replay(config, Path("runs/mine/skipped/step_000012.npz"), "runs/mine/skipped/policy"):
        print(found)

Each sequence goes through the objective alone, with the advantages that it had in its batch; nothing is learned.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import TrainEngine
from areal_x.api.records import BoolArray, TrainBatch
from areal_x.trainer.nonfinite import nonfinite_inputs
from areal_x.trainer.roles import make_train_engine
from areal_x.trainer.skipped_batches import read_skipped, select_sequences

__all__ = ["ReplayedSequence", "replay", "replay_lines"]

_TITLES = ("sequence", "group", "tokens", "advantage", "logprobs", "loss", "gradient")
_WIDTHS = (8, 8, 6, 9, 14, 10, 10)


@dataclass(frozen=True, slots=True)
class ReplayedSequence:
    """What one sequence of a batch gives. ``loss`` and ``grad_norm``: None where they are not finite."""

    index: int
    group_id: int
    num_trained_tokens: int
    largest_advantage: float
    """By its size."""
    num_bad_logprobs: int
    """Trained tokens whose log-probability is not finite."""
    loss: float | None
    grad_norm: float | None

    @property
    def is_finite(self) -> bool:
        """Whether a step on this sequence alone would not be skipped, or has nothing to train."""
        return self.num_trained_tokens == 0 or (self.loss is not None and self.grad_norm is not None)


def replay(config: ExperimentConfig, path: Path, model_path: str) -> list[ReplayedSequence]:
    """Go through the batch in ``path`` with the weights of ``model_path``, in this process, whatever ``num_ranks`` is.

    Raises:
        DataError: ``path`` holds no batch.
        ConfigError: the model cannot be loaded.
        EngineError: the batch does not fit the model.
    """
    skipped = read_skipped(path)
    batch = skipped.batch
    # Steps at rate 0 compute loss and gradient, and change nothing.
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, learning_rate=0.0),
        algorithm=dataclasses.replace(config.algorithm, num_mini_batches=1, num_epochs=1),
        reference=dataclasses.replace(config.reference, path=config.reference.path or config.model.path or model_path),
    )
    engine = make_train_engine(config, model_path)
    engine.version = skipped.version
    without_advantages = dataclasses.replace(batch, advantages=np.zeros_like(batch.advantages))
    is_bad = ~np.isfinite(engine.logprobs(without_advantages)) & batch.loss_mask
    return [_replay_one(engine, batch, index, is_bad) for index in range(len(batch))]


def _replay_one(engine: TrainEngine, batch: TrainBatch, index: int, is_bad: BoolArray) -> ReplayedSequence:
    one = select_sequences(batch, index, index + 1)
    sizes = np.abs(one.advantages[one.loss_mask])
    metrics = {} if nonfinite_inputs(one) is not None else engine.train_step(one)
    return ReplayedSequence(
        index=index,
        group_id=int(one.group_ids[0]),
        num_trained_tokens=int(one.loss_mask.sum()),
        largest_advantage=float(sizes.max(initial=0.0)),
        num_bad_logprobs=int(is_bad[batch.offsets[index] : batch.offsets[index + 1]].sum()),
        loss=metrics.get("train/loss"),
        grad_norm=metrics.get("train/grad_norm"),
    )


def replay_lines(sequences: list[ReplayedSequence], max_rows: int = 20) -> list[str]:
    """A table of the sequences that are not finite, the first ``max_rows`` of them, and a sentence; for people."""
    bad = [sequence for sequence in sequences if not sequence.is_finite]
    if not bad:
        return [f"each of the {len(sequences)} sequences is finite with these weights when it is alone"]
    titles = [f"{title:>{width}}" for title, width in zip(_TITLES, _WIDTHS, strict=True)]
    lines = ["  ".join(titles)]
    for one in bad[:max_rows]:
        logprobs = f"{one.num_bad_logprobs} not finite" if one.num_bad_logprobs else "finite"
        cells = [one.index, one.group_id, one.num_trained_tokens, f"{one.largest_advantage:.3g}", logprobs]
        cells += [_number(one.loss), _number(one.grad_norm)]
        lines.append("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)))
    return [*lines, f"{len(bad)} of {len(sequences)} sequences are not finite"]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
