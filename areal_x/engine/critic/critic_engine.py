"""The critic: a value model and its optimiser. ::

    values:     TrainBatch -> this rank's micro-batches -> head at the row before each sampled token -> [N]
    train_step: mini-batches as of the policy -> each: packed forward -> clipped value loss -> backward -> optimiser

It is packed, sharded and stepped as the policy is: losses are token sums over the trained tokens of all ranks, so
neither cutting nor the number of ranks changes them. Its weights are trained whole, with or without ``train.lora``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from areal_x.api.config import AlgorithmConfig, CriticConfig, ModelConfig, TrainConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.records import NOT_GENERATED, FloatArray, TrainBatch
from areal_x.api.train_config import LoraConfig
from areal_x.engine.critic.value_loss import VALUE_SUMS, value_loss
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.batch_checks import check_train_batch
from areal_x.engine.train.load_rows import load_into
from areal_x.engine.train.mini_batches import deal_mini_batches
from areal_x.engine.train.moved_tensors import MovedTensors, make_home, present
from areal_x.engine.train.optimizer import ScheduledAdamW, Update
from areal_x.engine.train.packed_scores import Head, body_of, load_scores
from areal_x.engine.train.packing import MicroBatch
from areal_x.engine.train.partition import plan_rank
from areal_x.engine.train.policy import embedding_rows, resolve_device
from areal_x.engine.train.sequence_parallel import check_heads
from areal_x.engine.train.sharding import local_rows
from areal_x.engine.train.training_state import TrainingState
from areal_x.engine.train.weights_home import KeptWeights, WeightsHome

__all__ = ["CRITIC_HEADS", "CriticEngine", "make_critic_engine"]

CRITIC_HEADS: tuple[Head, ...] = ("none", "sequence", "token")
"""What a critic may be made from."""
BoolMask = npt.NDArray[np.bool_]


class CriticEngine:
    """See ``api.engine_api.Critic``.

    Args:
        model_path: of the policy, whose body the critic gets where ``critic.path`` names no other.
        train: token budgets, sharding and all of the optimiser that ``critic`` does not say.
        algorithm: mini-batches and passes.
        model: device.
        seed: of the order of mini-batches.
        ranks: this rank's place.

    Raises:
        ConfigError: the model cannot be loaded or trained packed.
    """

    def __init__(
        self,
        model_path: Path | str,
        critic: CriticConfig,
        train: TrainConfig,
        algorithm: AlgorithmConfig,
        model: ModelConfig,
        *,
        seed: int = 0,
        ranks: RankContext = ONE_RANK,
    ) -> None:
        self._critic, self._algorithm, self._ranks, self._seed = critic, algorithm, ranks, seed
        self._train = dataclasses.replace(
            train,
            learning_rate=critic.learning_rate,
            lr_schedule=critic.lr_schedule,
            warmup_steps=critic.warmup_steps,
            lora=LoraConfig(),
        )
        self.device = resolve_device(model.device)
        if self.device.type == "cpu":
            torch.set_num_threads(train.num_threads)
        try:
            self.packed = load_scores(
                critic.path or model_path, model, self._train, self.device, ranks, heads=CRITIC_HEADS, kernel=None
            )
            check_heads(self.model.config, ranks.sequence_parallel)
        except ConfigError as error:
            raise ConfigError(f"critic.path={critic.path or model_path} cannot be the critic: {error}") from error
        self.optimizer = ScheduledAdamW(self.packed.parameters(), self._train, ranks, self.device)
        self._state = TrainingState(
            self.packed,
            self.optimizer,
            ranks,
            self.device,
            facts={"model_path": str(critic.path or model_path), "role": "critic"},
            timeout_seconds=train.rank_timeout_seconds / 2,
        )
        # Of ``train.cpu_offload`` nothing is on the device but what a pass gathers.
        offload = critic.offload and not train.cpu_offload
        self._home = make_home(self.packed, self.device, offload=offload)
        self._moments: WeightsHome = KeptWeights()
        if offload:
            self._moments = MovedTensors(self._optimizer_tensors, self.device)

    @property
    def model(self) -> PreTrainedModel:
        """The value model as transformers knows it; its weights may be sharded."""
        return self.packed.model

    def get_num_parameters(self) -> int:
        """Numbers in all weights."""
        return sum(parameter.numel() for parameter in self.packed.parameters())

    def load_body(self, path: Path) -> None:
        """Read all but the head from a model of the same architecture, such as the policy after its warm start.

        Raises:
            ConfigError: it is another model; nothing is changed then.
        """
        with present(self._home, self.packed):
            load_into(body_of(self.model), path)
            self._home.renew()

    @torch.no_grad()
    def values(self, batch: TrainBatch) -> FloatArray:
        """See ``Critic.values``; the same on every rank.

        Raises:
            EngineError: the batch contradicts itself or holds an id outside the vocabulary.
        """
        check_train_batch(batch, vocabulary_size=embedding_rows(self.model))
        result = torch.zeros(len(batch.input_ids), dtype=torch.float32, device=self.device)
        with present(self._home, self.packed):
            for micro_batch in self._plan(batch, _sampled_tokens(batch)):
                result[micro_batch.positions] = self.packed(micro_batch).to(torch.float32)
        values: FloatArray = self._ranks.sum(result).cpu().numpy()
        return values

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """See ``Critic.train_step``.

        A mini-batch is skipped, and counted in ``critic/skipped_steps``, when nothing of it is trained or when its loss
        or gradient is not finite (counted apart, too); metrics that are not finite are left out.

        Raises:
            EngineError: as ``values``, or values or returns are missing.
        """
        started = time.perf_counter()
        returns, old_values = self._targets(batch)
        step, learning_rate = self.optimizer.num_steps, self.optimizer.begin_step()
        sums = torch.zeros(len(VALUE_SUMS) + 1, dtype=torch.float64, device=self.device)
        updates: list[Update] = []
        with self._all_present():
            self.optimizer.clear()
            for sequences in self._mini_batches(batch, step):
                own = self._accumulate(self._plan(batch, batch.loss_mask, sequences), returns, old_values)
                updates.append(self.optimizer.apply(own[0], own[-1]))
                sums += own
        *values, num_tokens = self._ranks.sum(sums).tolist()
        bad_losses = sum(not math.isfinite(update.loss) for update in updates)
        bad = sum(not math.isfinite(update.loss + update.grad_norm) for update in updates)
        norms = [update.grad_norm for update in updates if update.applied]
        metrics = {
            "skipped_steps": len(updates) - len(norms),
            "nonfinite_losses": bad_losses,
            "nonfinite_gradients": bad - bad_losses,
            "learning_rate": learning_rate,
            "seconds": time.perf_counter() - started,
        }
        if num_tokens:
            metrics |= {name: value / num_tokens for name, value in zip(VALUE_SUMS, values, strict=True)}
        if norms:
            metrics["grad_norm"] = sum(norms) / len(norms)
        return {f"critic/{name}": float(value) for name, value in metrics.items() if np.isfinite(value)}

    def begin_checkpoint(self, path: Path) -> None:
        """See ``TrainEngine.begin_checkpoint``."""
        with self._all_present():
            self._state.begin(path, version=self.optimizer.num_steps)

    def end_checkpoint(self) -> None:
        """See ``TrainEngine.end_checkpoint``."""
        self._state.end()

    def restore_checkpoint(self, path: Path) -> None:
        """See ``TrainEngine.restore_checkpoint``; the rates of the schedule stay as they are configured."""
        with self._all_present():
            self._state.restore(path)

    def _targets(self, batch: TrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns and values at the start of the step, float32 [N]."""
        check_train_batch(batch, vocabulary_size=embedding_rows(self.model))
        arrays = []
        for name, array in (("returns", batch.returns), ("values", batch.values)):
            if array is None or len(array) != len(batch.input_ids):
                found = "none" if array is None else str(len(array))
                raise EngineError(f"train batch: the critic needs {name} of {len(batch.input_ids)} tokens, not {found}")
            arrays.append(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device))
        return arrays[0], arrays[1]

    def _mini_batches(self, batch: TrainBatch, step: int) -> Iterator[npt.NDArray[np.int64]]:
        algorithm = self._algorithm
        for epoch in range(algorithm.num_epochs):
            order_of = (self._seed, step, epoch) if algorithm.shuffle else None
            yield from deal_mini_batches(batch.group_ids, algorithm.num_mini_batches, order_of)

    def _accumulate(self, plan: list[MicroBatch], returns: torch.Tensor, old_values: torch.Tensor) -> torch.Tensor:
        """Gradients of token sums; gives the sums named by ``VALUE_SUMS`` and the trained tokens, float64 [3]."""
        sums = torch.zeros(len(VALUE_SUMS) + 1, dtype=torch.float64, device=self.device)
        for micro_batch in plan:
            loss, own = value_loss(
                self.packed(micro_batch),
                returns.index_select(0, micro_batch.positions),
                old_values.index_select(0, micro_batch.positions),
                self._critic.clip,
            )
            loss.backward()
            sums[:-1] += own
            sums[-1] += len(micro_batch.targets)
        return sums

    def _plan(
        self, batch: TrainBatch, wanted: BoolMask, sequences: npt.NDArray[np.int64] | None = None
    ) -> list[MicroBatch]:
        """This rank's micro-batches, or its rows of those that it shares; as many as every other rank's."""
        budget, kernel = self._train.micro_batch_tokens, self.packed.kernel
        return plan_rank(batch, wanted, budget, self._ranks, sequences=sequences, device=self.device, kernel=kernel)

    @contextlib.contextmanager
    def _all_present(self) -> Iterator[None]:
        """Weights and optimiser are on the device while the body runs, and may change."""
        with present(self._home, self.packed), present(self._moments, self.packed):
            try:
                yield
            finally:
                self._home.renew()

    def _optimizer_tensors(self) -> Iterator[torch.Tensor]:
        for state in self.optimizer.state.values():
            yield from (local_rows(value)[0] for value in state.values() if isinstance(value, torch.Tensor))


def _sampled_tokens(batch: TrainBatch) -> BoolMask:
    """The tokens that have a value: those that an engine sampled, trained or not; never the first of a sequence."""
    sampled = batch.loss_mask.astype(np.bool_)
    if batch.versions is not None:
        sampled = sampled | (batch.versions != NOT_GENERATED)
    sampled[batch.offsets[:-1]] = False
    return sampled


def make_critic_engine(ranks: RankContext, **kwargs: object) -> CriticEngine:
    """The role ``critic`` of a rank; arguments as of ``CriticEngine``."""
    return CriticEngine(ranks=ranks, **kwargs)  # type: ignore[arg-type]
