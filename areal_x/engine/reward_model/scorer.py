"""A reward model on one rank: load → score → offload. ::

    fetch ──▶ (the tail of the rollout) ──▶ score: wait for the weights, packed passes, longest first ──▶ released

Ranks score side by side, each with all weights and its own share of the conversations, dealt out by computed tokens.
Scores do not depend on where the weights were before: offloaded and kept models give the same bits.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from areal_x.api.config import RewardModelConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.reward_model_files import RewardModelFiles
from areal_x.engine.cpu_linear import use_onednn_linear
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.reward_model.scoring_batch import PartScores, ScoringBatch, packing_batch
from areal_x.engine.train.attention import PACKED_ATTENTION
from areal_x.engine.train.fused_norm import use_fused_norms
from areal_x.engine.train.packed_policy import packed_hidden_states
from areal_x.engine.train.packing import MicroBatch, plan_micro_batches
from areal_x.engine.train.partition import deal_sequences
from areal_x.engine.train.policy import DTYPES, resolve_device
from areal_x.engine.train.weights_home import KeptWeights, MappedWeights, PinnedWeights, WeightsHome

__all__ = ["RewardModelScorer", "make_scorer", "resolve_dtype"]

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of hidden states allowed between packed and alone, as a part of the largest one."""
_HEAD_NAMES = ("score", "classifier")


def make_scorer(
    ranks: RankContext,
    *,
    key: str,
    config: RewardModelConfig,
    files: RewardModelFiles,
    device: str,
    trust_remote_code: bool = False,
) -> RewardModelScorer:
    """The role ``reward_model/<name>`` of a rank; see ``RewardModelScorer``."""
    return RewardModelScorer(
        key, config, files, resolve_device(device), ranks=ranks, trust_remote_code=trust_remote_code
    )


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of ``reward_model.dtype``: ``auto`` is bfloat16 on CUDA and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


class RewardModelScorer:
    """Scores conversations with a sequence or token classification model of one label.

    Args:
        key: what the configuration calls the model, for messages.
        files: its checkpoint.
        device: where it scores.
        ranks: which share of each batch this one takes.

    Raises:
        ConfigError: the model does not load, or cannot be computed packed.
    """

    def __init__(
        self,
        key: str,
        config: RewardModelConfig,
        files: RewardModelFiles,
        device: torch.device,
        *,
        ranks: RankContext | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.key = key
        self._config = config
        self._ranks = ranks or RankContext()
        self._device = device
        dtype = resolve_dtype(config.dtype, device)
        self.model = _load(key, files, dtype, trust_remote_code)
        self._home = self._move_home(files, dtype)
        self._home.fetch()
        self._home.wait()
        _check_packing(self.model, f"{key}.path={files.folder}", self._device, files.vocabulary_size)
        self._home.release()

    def fetch(self) -> None:
        """Begin to bring the weights to the device; does nothing where they are there or on their way."""
        self._home.fetch()

    def release(self) -> None:
        """Free the device without a score."""
        self._home.release()

    @torch.inference_mode()
    def score(self, batch: ScoringBatch) -> PartScores:
        """The scores of this rank's share of ``batch``. The weights leave the device right after the last one.

        Raises:
            EngineError: a token id lies outside the vocabulary, or ``timeout_seconds`` are over.
        """
        deadline = time.monotonic() + self._config.timeout_seconds
        try:
            laid = packing_batch(batch)
            wanted = laid.loss_mask
            mine = deal_sequences(laid, wanted, self._ranks.num_ranks)[self._ranks.rank]
            budget = self._config.micro_batch_tokens
            plan = plan_micro_batches(laid, wanted, budget, sequences=mine, device=self._device) if len(mine) else []
            num_tokens = sum(micro_batch.num_rows for micro_batch in plan)
            if self._device.type == "cpu":
                plan = [_pad_rows(micro_batch) for micro_batch in plan]
            started = time.perf_counter()
            self._home.wait()
            load_seconds = time.perf_counter() - started
            # Packing puts short sequences first. The longest need the most memory: if it is too little, better at once.
            found = [self._score(micro_batch, deadline) for micro_batch in reversed(plan)]
            values = torch.cat(found).cpu().numpy() if found else np.zeros(0, dtype=np.float32)
        finally:
            self._home.release()
        places = [micro_batch.positions for micro_batch in reversed(plan)]
        targets = torch.cat(places).cpu().numpy() if places else np.zeros(0, dtype=np.int64)
        index = np.searchsorted(np.flatnonzero(wanted), targets)
        return PartScores(index, values, load_seconds, num_tokens)

    def _score(self, micro_batch: MicroBatch, deadline: float) -> torch.Tensor:
        """Scores [M], float32, at the rows of a micro-batch."""
        if time.monotonic() > deadline:
            raise EngineError(
                f"{self.key}: scoring a batch took longer than {self.key}.timeout_seconds="
                f"{self._config.timeout_seconds:g}; raise it, or lower train.batch_size"
            )
        hidden = packed_hidden_states(self.model, micro_batch).index_select(0, micro_batch.rows)
        scores: torch.Tensor = _head(self.model)(hidden).squeeze(-1).to(torch.float32)
        return scores

    def _move_home(self, files: RewardModelFiles, dtype: torch.dtype) -> WeightsHome:
        """Give the weights their place for the run, and the small buffers theirs on the device."""
        if not self._config.offload:
            torch.nn.Module.to(self.model, self._device)
            return KeptWeights()
        home: WeightsHome
        if self._device.type == "cpu":
            home = MappedWeights(self.model, files.weights, dtype)
        else:
            home = PinnedWeights(self.model, self._device)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self._device)
        return home


def _load(key: str, files: RewardModelFiles, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    kinds: dict[str, Any] = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
    try:
        model, report = kinds[files.head].from_pretrained(
            files.folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise ConfigError(f"{key}.path={files.folder} could not be loaded: {text}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(f"{key}.path={files.folder} lacks weights of the model: {missing}; copy the folder again")
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    if not any(hasattr(loaded, name) for name in _HEAD_NAMES):
        raise ConfigError(
            f"{key}.path={files.folder} ({loaded.config.model_type}) has no linear head that gives scores"
        )
    return loaded


def _head(model: PreTrainedModel) -> torch.nn.Module:
    head: torch.nn.Module = getattr(model, next(name for name in _HEAD_NAMES if hasattr(model, name)))
    return head


def _pad_rows(micro_batch: MicroBatch) -> MicroBatch:
    """Round the rows up, by a sixteenth at most: oneDNN keeps a kernel for each number of rows that it ever meets, and
    over a run that would be more memory than the weights give back. The added rows take some other row's attention,
    and nothing reads them."""
    rows = micro_batch.num_rows
    step = max(16, 1 << max(0, rows.bit_length() - 5))
    added = (0, -rows % step)
    if not added[1]:
        return micro_batch
    plan, pad = micro_batch.attention, torch.nn.functional.pad
    return replace(
        micro_batch,
        input_ids=pad(micro_batch.input_ids, added),
        position_ids=pad(micro_batch.position_ids, added),
        attention=replace(plan, owners=pad(plan.owners, added), in_order=False),
    )


@torch.inference_mode()
def _check_packing(model: PreTrainedModel, place: str, device: torch.device, vocabulary: int) -> None:
    """Compare three short sequences packed, two of which share a prefix, with the model's own forward pass.

    Switches the model to packed attention and to faster layers on a CPU.
    """
    pad = getattr(model.config, "pad_token_id", None)
    ids = [token for token in range(vocabulary) if token != pad][:8]
    if len(ids) < 8:
        raise ConfigError(f"{place}: a vocabulary of {vocabulary} tokens cannot score anything")
    sequences = [ids[:5], [*ids[:3], ids[5]], ids[6:8]]
    alone, own_scores = [], []
    for sequence in sequences:
        inputs = torch.tensor([sequence], device=device)
        alone.append(model.base_model(input_ids=inputs, use_cache=False).last_hidden_state[0, -1])
        own_scores.append(model(input_ids=inputs).logits.reshape(-1)[-1])
    expected = torch.stack(alone).float()
    if not torch.allclose(_head(model)(torch.stack(alone)).squeeze(-1), torch.stack(own_scores), atol=1e-2, rtol=1e-2):
        raise ConfigError(f"{place}: its score is not its head on the last hidden state; it is not supported")
    model.set_attn_implementation(PACKED_ATTENTION)
    # The head's few rows differ from batch to batch: oneDNN would keep a kernel for each number of them.
    use_onednn_linear(model.base_model)
    use_fused_norms(model)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    batch = ScoringBatch(
        np.array([token for sequence in sequences for token in sequence], dtype=np.int32),
        lengths,
        np.array([0, 0, 1], dtype=np.int64),
        np.ones(3, dtype=np.int32),
        lengths.astype(np.int64) - 1,
    )
    laid = packing_batch(batch)
    (micro_batch,) = plan_micro_batches(laid, laid.loss_mask, int(lengths.sum()), device=device)
    try:
        packed = packed_hidden_states(model, micro_batch)[micro_batch.rows].float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{place} cannot be computed packed: {error}") from error
    order = torch.argsort(micro_batch.positions)
    difference = ((packed[order] - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not difference <= PROBE_TOLERANCE[expected.dtype if model.dtype == torch.float32 else model.dtype]:
        raise ConfigError(
            f"{place} ({model.config.model_type}) gives other hidden states packed than alone (relative difference "
            f"{difference:.1g}); its architecture is not supported"
        )
