"""Training of a reward model on preference pairs. ::

    PreferenceBatch -> plan_pairs -> each: packed forward -> score at the last tokens -> Bradley-Terry loss -> backward
                    -> divide by the pairs of the whole step -> clip -> optimiser step (skipped when not finite)

Every rank gets the whole batch and takes its part of it. Losses are sums over the pairs of all ranks, divided by their
number, so neither packing nor the number of ranks changes them.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from areal_x.api.config import ModelConfig
from areal_x.api.records import FloatArray
from areal_x.api.train_config import PreferenceConfig, TrainConfig
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.reward_model.preference_batch import PairMicroBatch, PreferenceBatch, plan_pairs
from areal_x.engine.reward_model.preference_loss import PREFERENCE_SUMS, preference_loss
from areal_x.engine.train.load_rows import stored_tensors
from areal_x.engine.train.optimizer import ScheduledAdamW
from areal_x.engine.train.packed_scores import load_scores
from areal_x.engine.train.policy import embedding_rows, resolve_device
from areal_x.engine.train.sharding import free_gathered, whole

__all__ = ["PreferenceEngine", "make_preference_engine"]


class PreferenceEngine:
    """A reward model and its optimiser, on one rank or one of several.

    Args:
        path: a reward model or a causal language model; see ``load_scores``.
        train: optimiser, token budget, threads.
        preferences: steps, learning rate and its schedule.
        model: device.
        pad_token_id, num_tokens, seed: see ``load_scores``.
        ranks: this rank's place.

    Raises:
        ConfigError: the model cannot be loaded or trained packed.
    """

    def __init__(
        self,
        path: Path | str,
        train: TrainConfig,
        preferences: PreferenceConfig,
        model: ModelConfig,
        *,
        pad_token_id: int,
        num_tokens: int,
        seed: int,
        ranks: RankContext = ONE_RANK,
    ) -> None:
        self._train, self._ranks = train, ranks
        self.device = resolve_device(model.device)
        if self.device.type == "cpu":
            torch.set_num_threads(train.num_threads)
        self.packed = load_scores(
            path, model, train, self.device, self._ranks, pad_token_id=pad_token_id, num_tokens=num_tokens, seed=seed
        )
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self._optimizer = ScheduledAdamW(self.packed.parameters(), train, self._ranks, self.device)
        self._optimizer.reset(
            preferences.learning_rate, preferences.lr_schedule, preferences.warmup_steps, preferences.steps
        )

    @property
    def model(self) -> PreTrainedModel:
        """The reward model, whose weights are sharded where there are several ranks."""
        return self.packed.model

    def train_step(self, batch: PreferenceBatch) -> dict[str, float]:
        """One optimiser step; returns metrics named ``rm/...``, means over the pairs of the batch.

        The step is skipped, and counted in ``rm/skipped_steps``, when loss or gradient is not finite; the weights then
        stay as they are, and metrics that are not finite are left out.

        Raises:
            EngineError: the batch contradicts itself or holds an id outside the vocabulary.
        """
        started = time.perf_counter()
        batch.check(embedding_rows(self.model))
        self._optimizer.clear()
        learning_rate = self._optimizer.begin_step()
        sums = torch.zeros(len(PREFERENCE_SUMS), dtype=torch.float64, device=self.device)
        num_pairs = num_rows = 0
        for planned in self._plan(batch):
            loss, own = preference_loss(self.packed(planned.micro_batch))
            loss.backward()
            sums += own
            num_pairs += len(planned.pairs)
            num_rows += planned.micro_batch.num_rows
        update = self._optimizer.apply(sums[0], num_pairs)
        values = self._ranks.sum(torch.cat([sums, sums.new_tensor([num_rows])])).tolist()
        metrics = dict(zip(PREFERENCE_SUMS, (value / len(batch) for value in values), strict=False))
        metrics |= {
            "grad_norm": update.grad_norm,
            "learning_rate": learning_rate,
            "skipped_steps": 0.0 if update.applied else 1.0,
            "pairs": len(batch),
            "tokens": int(batch.lengths.sum()),
            "computed_tokens": values[-1],
            "seconds": time.perf_counter() - started,
        }
        return {f"rm/{name}": float(value) for name, value in metrics.items() if np.isfinite(value)}

    @torch.no_grad()
    def scores(self, batch: PreferenceBatch) -> FloatArray:
        """Scores of all sequences, float32 [2 B]: chosen, rejected, chosen, ... The same on every rank.

        Raises:
            EngineError: as ``train_step``.
        """
        batch.check(embedding_rows(self.model))
        result = torch.zeros(2 * len(batch), dtype=torch.float32, device=self.device)
        for planned in self._plan(batch):
            scores = self.packed(planned.micro_batch)
            places = torch.from_numpy(planned.pairs).to(self.device)[:, None] * 2 + torch.arange(2, device=self.device)
            result[places.view(-1)] = scores.to(torch.float32)
        free_gathered(self.packed)
        values: FloatArray = self._ranks.sum(result).cpu().numpy()
        return values

    def save(self, path: Path) -> None:
        """Write a sequence classification model of one label (float32 weights, no tokenizer) in Hugging Face format.

        Every rank must call it; the first one writes.
        """
        weights = {}
        for name, tensor in stored_tensors(self.model):
            gathered = whole(tensor)
            if self._ranks.rank == 0:
                weights[name] = gathered.cpu()
        if self._ranks.rank == 0:
            self.model.save_pretrained(path, state_dict=weights)
        # Nobody goes on before the files are there.
        self._ranks.sum(torch.zeros(1, device=self.device))

    def _plan(self, batch: PreferenceBatch) -> list[PairMicroBatch]:
        return plan_pairs(
            batch,
            self._train.micro_batch_tokens,
            part=self._ranks.data_rank,
            num_parts=self._ranks.num_data_ranks,
            device=self.device,
        )


def make_preference_engine(ranks: RankContext, **kwargs: object) -> PreferenceEngine:
    """The factory that ranks call; arguments as of ``PreferenceEngine``."""
    return PreferenceEngine(ranks=ranks, **kwargs)  # type: ignore[arg-type]
