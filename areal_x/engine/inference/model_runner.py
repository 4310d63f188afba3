"""A transformers model that decodes with slot attention: loading, checking its attention, forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from areal_x.api.errors import EngineError
from areal_x.engine.inference.slot_attention import SLOT_ATTENTION, Prefix, SlotCache, make_prefix, run_with_cache

__all__ = ["ModelRunner", "PrefixRow", "load_model"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROBE_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
_PROBE_LENGTH, _PROBE_PREFIX = 12, 8
_MAX_PADDED_SHARE = 1.5
_MAX_PASS_TOKENS = 8192

PrefixRow = tuple[int, npt.NDArray[np.int32]]
"""A row and the tokens whose keys and values it needs."""


def load_model(path: str, dtype: str, device: torch.device, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model for inference.

    Raises:
        EngineError: the path, type or kind of model is not one that the engine can run.
    """
    if dtype not in _DTYPES:
        raise EngineError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if getattr(config, "is_encoder_decoder", False):
        raise EngineError(f"model type {config.model_type!r} is an encoder-decoder; the engine runs causal models only")
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=_DTYPES[dtype], trust_remote_code=trust_remote_code)
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


class ModelRunner:
    """A model, its slots' cache, and one forward pass at a time.

    Raises:
        EngineError: slot attention does not give this model's own results.
    """

    def __init__(self, model: PreTrainedModel, num_slots: int, max_length: int) -> None:
        self.model = model
        self.device = model.device
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and max_length > limit:
            raise EngineError(f"max_length {max_length} is above the model's {limit} positions; set at most {limit}")
        self.cache = SlotCache(num_slots, max_length)
        with torch.inference_mode():
            self._check_attention(config)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Every parameter under every name it has; tied ones under several."""
        return {name: p.data for name, p in self.model.named_parameters(remove_duplicate=False)}

    def _check_attention(self, config: Any) -> None:
        """Compare a short sequence through slots with the model's own attention; look at what its layers ask for."""
        kind = f"model type {self.model.config.model_type!r} is not supported by the embedded engine"
        length = min(_PROBE_LENGTH, self.cache.max_length)
        split = min(_PROBE_PREFIX, length - 1)
        ids = np.random.default_rng(0).integers(0, self.vocab_size, length).astype(np.int32)
        inputs = torch.from_numpy(ids).long().to(self.device)[None]
        expected = self.model(input_ids=inputs, use_cache=False).logits[0].float()
        self.model.set_attn_implementation(SLOT_ATTENTION)
        if self.model.config._attn_implementation != SLOT_ATTENTION:
            raise EngineError(f"{kind}: it does not use transformers' attention interface")
        if split:
            self.prefill([(0, ids[:split])])
        rows = [self.decode(ids[i : i + 1].astype(np.int64), np.array([i]), []).float() for i in range(split, length)]
        num_layers = int(config.num_hidden_layers)
        if len(self.cache.windows) != num_layers:
            raise EngineError(f"{kind}: {len(self.cache.windows)} of its {num_layers} layers use attention")
        self._check_windows(config, kind)
        ours = torch.log_softmax(torch.cat(rows), -1)
        difference = float((ours - torch.log_softmax(expected[split:], -1)).abs().max())
        if not difference <= _PROBE_TOLERANCE[self.model.dtype]:
            raise EngineError(f"{kind}: its log-probabilities differ by {difference:.2g} from its own attention's")

    def _check_windows(self, config: Any, kind: str) -> None:
        """A layer that looks back only so far must have said so, or be longer than any sequence here."""
        layer_types = getattr(config, "layer_types", None) or []
        for layer, layer_type in enumerate(layer_types):
            if layer_type == "full_attention":
                continue
            name = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}.get(layer_type)
            span = getattr(config, name, None) if name else None
            if span is None:
                raise EngineError(f"{kind}: layer {layer} is {layer_type!r}")
            given = self.cache.windows[layer] if layer_type == "sliding_attention" else None
            if given is None and span < self.cache.max_length:
                raise EngineError(f"{kind} beyond its {name} of {span} tokens; set max_length to {span} at most")

    def prefill(self, rows: Sequence[PrefixRow]) -> None:
        """Fill the cache of rows with their prefixes, in passes of similar length."""
        for part in _passes(rows):
            prefix, ids, positions = self._pack(part)
            self._forward(np.empty(0, np.int64), np.empty(0, np.int64), prefix, ids, positions)

    def decode(
        self, tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], joining: Sequence[PrefixRow]
    ) -> torch.Tensor:
        """One decode step of rows 0 to R - 1.

        Args:
            tokens: the last token of each row, int64 [R].
            positions: its position, int64 [R].
            joining: prefixes of rows that decode for the first time. What fits goes into the same pass.

        Returns:
            Logits of the next token, [R, vocabulary].
        """
        if not joining:
            return self._forward(tokens, positions, None, None, None)
        *earlier, last = _passes(joining)
        for part in earlier:
            self.prefill(part)
        return self._forward(tokens, positions, *self._pack(last))

    def _pack(self, rows: Sequence[PrefixRow]) -> tuple[Prefix, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Lay the distinct prefixes end to end: plan, ids and positions [N]."""
        segment_of: dict[bytes, int] = {}
        segments: list[npt.NDArray[np.int32]] = []
        source = []
        for _, ids in rows:
            key = ids.tobytes()
            if key not in segment_of:
                segment_of[key] = len(segments)
                segments.append(ids)
            source.append(segment_of[key])
        lengths = np.array([len(ids) for ids in segments])
        prefix = make_prefix(lengths, [row for row, _ in rows], source, self.device)
        positions = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return prefix, np.concatenate(segments), positions

    def _forward(
        self,
        tokens: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        prefix: Prefix | None,
        prefix_ids: npt.NDArray[np.int32] | None,
        prefix_positions: npt.NDArray[np.int64] | None,
    ) -> torch.Tensor:
        self.cache.plan_step(positions, prefix, self.device)
        num_rows = len(tokens)
        keep: int | slice = 0
        if prefix_ids is not None and prefix_positions is not None:
            tokens = np.concatenate([tokens, prefix_ids])
            positions = np.concatenate([positions, prefix_positions])
            keep = slice(0, max(num_rows, 1))
        output = run_with_cache(
            self.cache,
            self.model,
            input_ids=torch.from_numpy(tokens).to(self.device)[None],
            position_ids=torch.from_numpy(positions).to(self.device)[None],
            use_cache=False,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def _passes(rows: Sequence[PrefixRow]) -> list[list[PrefixRow]]:
    """Split prefixes into passes of bounded size and padding, shortest first; a function of the rows alone."""
    parts: list[list[PrefixRow]] = []
    shortest = padded = real = 0
    distinct: set[bytes] = set()
    for row in sorted(rows, key=lambda item: len(item[1])):
        length, key = len(row[1]), row[1].tobytes()
        if key not in distinct:
            width = length * (len(distinct) + 1)
            too_wide = width > _MAX_PADDED_SHARE * (real + length) and length > shortest + 32
            if not parts or real + length > _MAX_PASS_TOKENS or padded + length > 2 * _MAX_PASS_TOKENS or too_wide:
                parts.append([])
                distinct, real, padded, shortest = set(), 0, 0, length
            distinct.add(key)
            real += length
            padded = length * len(distinct)
        parts[-1].append(row)
    return parts
