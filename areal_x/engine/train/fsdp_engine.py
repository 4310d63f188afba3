"""The train engine: a policy, its reference and its optimiser; ``policy_updates.py`` holds the steps of a batch.

Losses and metrics are token sums over the token count of the whole step, so neither depends on how it was cut, nor on
the number of ranks. All ranks make the same calls with the same batches; each finds its own part of them by a pure
function, and makes as many passes as the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from areal_x.api.config import AlgorithmConfig, ModelConfig, ReferenceConfig, TrainConfig
from areal_x.api.engine_api import PolicyFacts, TrainEngine
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.records import FloatArray, TrainBatch
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.batch_checks import check_train_batch
from areal_x.engine.train.lora import adapter_facts, merged_rows, named_adapters, published_parameters
from areal_x.engine.train.optimizer import ScheduledAdamW
from areal_x.engine.train.packing import MicroBatch
from areal_x.engine.train.partition import plan_rank
from areal_x.engine.train.policy import DTYPES, embedding_rows, load_policy, resolve_device
from areal_x.engine.train.policy_files import load_weights, save_policy
from areal_x.engine.train.policy_updates import PolicyHooks, PolicyUpdates
from areal_x.engine.train.reference import Reference
from areal_x.engine.train.sharding import free_gathered, local_rows, whole
from areal_x.engine.train.training_state import TrainingState
from areal_x.engine.transfer.lora import AdapterFacts
from areal_x.engine.transfer.weight_rows import LocalWeight

__all__ = ["FSDPEngine"]

BoolMask = npt.NDArray[np.bool_]


class FSDPEngine(TrainEngine):
    """A policy, its optimiser and, when the loss needs one, a frozen reference.

    Args:
        model_path: directory in Hugging Face format, or a hub name (text).
        train: optimiser, schedule, token budgets and threads. ``num_threads`` is applied here, once, on a CPU.
        algorithm: the objective.
        model: device, and the type of numbers of the inference engines that take the weights; training keeps float32.
        temperature: of the sampling whose log-probabilities are trained.
        reference: what the policy is kept near, where ``algorithm.kl_coefficient`` says so. Default: the policy itself.
        seed: of the order in which groups are dealt out to mini-batches.
        ranks: this rank's place among those that train together; every method is then called on all of them alike.

    Raises:
        ConfigError: the model cannot be loaded or trained packed, or a value is impossible.
    """

    def __init__(
        self,
        model_path: Path | str,
        train: TrainConfig,
        algorithm: AlgorithmConfig,
        model: ModelConfig,
        *,
        temperature: float = 1.0,
        reference: ReferenceConfig | None = None,
        seed: int = 0,
        ranks: RankContext = ONE_RANK,
    ) -> None:
        if not temperature > 0:
            raise ConfigError(f"temperature: {temperature} cannot be trained; log-probabilities need one above 0")
        self.version = 0
        self.temperature = temperature
        self._train = train
        self._algorithm = algorithm
        self._ranks = ranks
        self.policy = load_policy(model_path, model, train, ranks, adapters=train.lora.rank > 0)
        self.device = resolve_device(model.device)
        self.inference_dtype = DTYPES[model.dtype]
        """What engines that take ``named_weights`` compute in."""
        self._model_path = str(model_path)
        self._trust_remote_code = model.trust_remote_code
        if self.device.type == "cpu":
            torch.set_num_threads(train.num_threads)
        self.reference: Reference | None = None
        if algorithm.kl_coefficient:
            self.reference = Reference(self.policy, model_path, reference or ReferenceConfig(), model, train, ranks)
        self.optimizer = ScheduledAdamW(self.policy.parameters(), train, ranks, self.device)
        self.updates = PolicyUpdates(
            self.policy,
            self.optimizer,
            algorithm,
            PolicyHooks(self._plan, self._logprobs, self._reference_values),
            temperature=temperature,
            ranks=ranks,
            device=self.device,
            seed=seed,
        )
        self._state = TrainingState(
            self.model,
            self.optimizer,
            ranks,
            self.device,
            facts={"model_path": _lasting(model_path), "lora": dataclasses.asdict(train.lora)},
            timeout_seconds=train.rank_timeout_seconds / 2,
        )

    @property
    def model(self) -> PreTrainedModel:
        """The policy as transformers knows it; its weights may be sharded."""
        return self.policy.model

    @property
    def facts(self) -> PolicyFacts:
        """See ``TrainEngine.facts``."""
        return PolicyFacts(
            device=str(self.device),
            inference_dtype=self.inference_dtype,
            weights=tuple((name, tuple(weight.shape)) for name, weight, _ in published_parameters(self.model)),
            vocabulary_size=embedding_rows(self.model),
            num_reference_parameters=0 if self.reference is None else self.reference.num_parameters,
        )

    def reset_optimizer(self, learning_rate: float, schedule: str, warmup_steps: int, total_steps: int) -> None:
        """See ``TrainEngine.reset_optimizer``."""
        self.discard()
        self.optimizer.reset(learning_rate, schedule, warmup_steps, total_steps)
        if self.reference is not None:
            self.reference.start_over()

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.optimizer.learning_rate

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimiser step for each mini-batch; returns metrics named ``train/...``, averaged over trained tokens.

        The step is skipped, and counted in ``train/skipped_steps``, when nothing is to be trained or when the loss or
        the gradient is not finite; the weights then stay as they are, and metrics that are not finite are left out.

        Raises:
            EngineError: the batch contradicts itself or holds an id outside the vocabulary.
        """
        self.discard()
        self._check(batch)
        return self.updates.train(batch, self.version)

    def accumulate(self, part: TrainBatch) -> None:
        """See ``TrainEngine.accumulate``. A part that cannot be computed leaves no gradients behind.

        Raises:
            EngineError: the part contradicts itself or holds an id outside the vocabulary.
        """
        try:
            self._check(part)
            self.updates.accumulate(part, self.version)
        except BaseException:
            self.discard()
            raise

    def apply(self) -> dict[str, float]:
        """See ``TrainEngine.apply``; metrics and skipped steps as in ``train_step``."""
        return self.updates.apply()

    def discard(self) -> None:
        """See ``TrainEngine.discard``."""
        self.updates.discard()
        free_gathered(self.policy)
        if self.reference is not None:
            self.reference.free()

    def release_memory(self) -> None:
        """See ``TrainEngine.release_memory``; PyTorch keeps freed blocks for itself otherwise."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sft_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimiser step on the mean negative log-likelihood of the masked tokens, at temperature 1.

        Returns metrics named ``sft/...``; steps are skipped as in ``train_step``.
        """
        started = time.perf_counter()
        self._check(batch)
        self.discard()
        learning_rate = self.optimizer.begin_step()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        num_tokens = 0
        for micro_batch in self._plan(batch, batch.loss_mask):
            logprobs, _ = self.policy(micro_batch, 1.0)
            loss = -logprobs.sum()
            loss.backward()
            total += loss.detach()
            num_tokens += len(micro_batch.targets)
        update = self.optimizer.apply(total, num_tokens)
        metrics = {
            "skipped_steps": 0.0 if update.applied else 1.0,
            "tokens": update.denominator,
            "learning_rate": learning_rate,
            "seconds": time.perf_counter() - started,
        }
        if update.denominator:
            metrics |= {"loss": update.loss, "grad_norm": update.grad_norm}
        return {f"sft/{name}": float(value) for name, value in metrics.items() if np.isfinite(value)}

    def logprobs(self, batch: TrainBatch) -> FloatArray:
        """See ``TrainEngine.logprobs``; at the engine's temperature."""
        self._check(batch)
        return self._logprobs(batch, _predicted(batch))

    def reference_logprobs(self, batch: TrainBatch) -> FloatArray:
        """See ``TrainEngine.reference_logprobs``."""
        self._check(batch)
        found = self._reference_values(len(batch.input_ids), self._plan(batch, _predicted(batch)))
        values: FloatArray = self._ranks.sum(found).cpu().numpy()
        return values

    def update_reference(self) -> None:
        """See ``TrainEngine.update_reference``."""
        if self.reference is not None:
            self.reference.follow()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See ``TrainEngine.named_weights``. The tensors are the live ones, not copies, but for layers with adapters
        (computed anew, with the adapter merged in) and sharded ones: those are gathered one by one, and every rank must
        go through all of them."""
        for name, parameter, layer in published_parameters(self.model):
            yield name, merged_rows(whole(parameter), layer)

    def local_weights(self) -> Iterator[LocalWeight]:
        """What this rank holds of each weight of ``named_weights``, in the same order on every rank, which must go
        through all of them."""
        for name, parameter, layer in published_parameters(self.model):
            rows, first = local_rows(parameter)
            yield LocalWeight(name, tuple(parameter.shape), parameter.dtype, first, merged_rows(rows, layer, first))

    def named_adapters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The adapters alone, under peft's names; nothing without ``train.lora``."""
        return named_adapters(self.model)

    @property
    def adapter_facts(self) -> AdapterFacts:
        """What servers must know of the adapters."""
        return adapter_facts(self.model, self._train.lora, self._model_path)

    def save(self, path: Path) -> None:
        """Write the policy (float32 weights and config, no tokenizer) in Hugging Face format; with ``train.lora``
        adapters are merged in, and stand in ``adapter/`` beside it in peft's format. With several ranks all call it,
        and the first writes, one weight at a time.

        Raises:
            EngineError: it cannot be written; on all ranks.
        """
        save_policy(self.model, path, self._ranks, self.adapter_facts if self._train.lora.rank else None)

    def load(self, path: Path) -> None:
        """Read weights into the policy in place, so that the optimiser goes on with them.

        Gradients that were accumulated belong to the old weights and are thrown away. With ``train.lora``, an
        ``adapter/`` in the directory is read in place of the merged weights, which must be those that it makes of this
        base; without one, the weights become the base, and the reference, and adapters start anew.

        Raises:
            EngineError: the directory holds no model, or one of other names or shapes, or an adapter of another base.
        """
        self.discard()
        self._state.forget_frozen()
        load_weights(
            self.model, path, has_adapters=self._train.lora.rank > 0, trust_remote_code=self._trust_remote_code
        )

    def begin_checkpoint(self, path: Path) -> None:
        """See ``TrainEngine.begin_checkpoint``."""
        if self.reference is None or not self.reference.has_moved:
            self._state.begin(path, self.version)
            return
        with self.reference.weights() as weights:
            self._state.begin(path, self.version, _as_reference(weights))

    def end_checkpoint(self) -> None:
        """See ``TrainEngine.end_checkpoint``."""
        self._state.end()

    def restore_checkpoint(self, path: Path) -> None:
        """See ``TrainEngine.restore_checkpoint``; the rates of the schedule stay as they are configured."""
        self.discard()
        with contextlib.ExitStack() as stack:
            weights = {} if self.reference is None else stack.enter_context(self.reference.weights())
            restored = self._state.restore(path, _as_reference(weights))
            if self.reference is not None and restored["others"]:
                self.reference.replaced()
        self.version = restored["version"]

    def _check(self, batch: TrainBatch) -> None:
        check_train_batch(batch, vocabulary_size=embedding_rows(self.model))

    def _plan(
        self, batch: TrainBatch, wanted: BoolMask, sequences: npt.NDArray[np.int64] | None = None
    ) -> list[MicroBatch]:
        """This rank's micro-batches, or its rows of those that it shares; as many as every other rank's."""
        budget, kernel = self._train.micro_batch_tokens, self.policy.kernel
        return plan_rank(batch, wanted, budget, self._ranks, sequences=sequences, device=self.device, kernel=kernel)

    def _reference_values(self, num_tokens: int, plan: list[MicroBatch]) -> torch.Tensor:
        """Log-probabilities of the targets of ``plan`` under the reference, float32 [N]; 0 elsewhere."""
        if self.reference is None:
            raise EngineError("there is no reference model: algorithm.kl_coefficient is 0")
        result = torch.zeros(num_tokens, dtype=torch.float32, device=self.device)
        with self.reference.present():
            for micro_batch in plan:
                result[micro_batch.positions] = self.reference.logprobs(micro_batch, self.temperature).float()
        return result

    @torch.no_grad()
    def _logprobs(self, batch: TrainBatch, wanted: BoolMask) -> FloatArray:
        result = torch.zeros(len(batch.input_ids), dtype=torch.float32, device=self.device)
        for micro_batch in self._plan(batch, wanted):
            logprobs, _ = self.policy(micro_batch, self.temperature)
            result[micro_batch.positions] = logprobs.to(torch.float32)
        free_gathered(self.policy)
        values: FloatArray = self._ranks.sum(result).cpu().numpy()
        return values


def _as_reference(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"reference.{name}": weight for name, weight in weights.items()}


def _lasting(model_path: Path | str) -> str:
    """A name of the model that is right in any working directory."""
    return str(Path(model_path).resolve()) if Path(model_path).is_dir() else str(model_path)


def _predicted(batch: TrainBatch) -> BoolMask:
    """The tokens that have a log-probability: all but the first of each sequence."""
    wanted = np.ones(len(batch.input_ids), dtype=np.bool_)
    wanted[batch.offsets[:-1][batch.lengths > 0]] = False
    return wanted
