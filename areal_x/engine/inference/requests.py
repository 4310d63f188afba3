"""Checks a request before it is sent, and turns it into its compact form."""

from __future__ import annotations

import math

import numpy as np

from areal_x.api.errors import PromptTooLongError, RequestError
from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine.inference.messages import WireRequest

__all__ = ["check_ids", "check_sampling", "derive_seed", "to_wire"]

_MASK = 2**64 - 1
_UNSIGNED = np.dtype(np.uint32)


def derive_seed(*parts: int) -> int:
    """A 64-bit seed from several numbers (FNV-1a over 64-bit words); the engine hashes it again for each token."""
    state = 0xCBF29CE484222325
    for part in parts:
        state = ((state ^ (part & _MASK)) * 0x100000001B3) & _MASK
        state ^= state >> 29
    return state


def check_sampling(sampling: SamplingParams, has_tokenizer: bool) -> None:
    """Raise ``RequestError`` for values that cannot be sampled with."""
    if sampling.max_new_tokens < 1:
        raise RequestError(f"max_new_tokens {sampling.max_new_tokens} is below 1")
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0.0):
        raise RequestError(f"temperature {sampling.temperature} is not a number from 0 up")
    if not 0.0 < sampling.top_p <= 1.0:
        raise RequestError(f"top_p {sampling.top_p} is not above 0 and at most 1")
    if sampling.top_k < 0:
        raise RequestError(f"top_k {sampling.top_k} is below 0; 0 means no limit")
    if sampling.stop:
        if not all(sampling.stop):
            raise RequestError("stop holds an empty string, which would end every completion at once")
        if not has_tokenizer:
            raise RequestError("stop strings need a tokenizer beside the model; use stop_token_ids")


def check_ids(request: ModelRequest, vocab_size: int, max_length: int) -> None:
    """Raise for a prompt that cannot be continued.

    Raises:
        PromptTooLongError: no room for one token after the prompt.
        RequestError: no prompt, or an id outside the vocabulary.
    """
    ids = request.input_ids
    if ids.ndim != 1 or len(ids) == 0:
        raise RequestError(f"{request.request_id}: input_ids must be one row of at least one id, got shape {ids.shape}")
    if len(ids) >= max_length:
        raise PromptTooLongError(
            f"{request.request_id}: a prompt of {len(ids)} tokens leaves no room for a completion in max_length "
            f"{max_length}; raise rollout.max_length or shorten the prompt"
        )
    # As unsigned numbers, negative ids are larger than every vocabulary.
    unsigned = ids.view(_UNSIGNED)
    if unsigned.item(unsigned.argmax()) >= vocab_size:
        bad = next(int(i) for i in ids if not 0 <= i < vocab_size)
        raise RequestError(f"{request.request_id}: id {bad} is outside the model's vocabulary of {vocab_size}")


def to_wire(request: ModelRequest, number: int, batch: int, seed: int, vocab_size: int, max_length: int) -> WireRequest:
    """The compact form of a request whose sampling values are checked; raises as ``check_ids``."""
    check_ids(request, vocab_size, max_length)
    sampling = request.sampling
    return WireRequest(
        number,
        request.input_ids.tobytes(),
        sampling.max_new_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        seed,
        sampling.stop_token_ids,
        sampling.stop,
        sampling.ignore_eos,
        batch,
    )
