"""Frames between the driver and its engine process, over one socket pair.

A frame is an 8-byte length and a pickled list of messages; a message is a tuple whose first element names it. Pickle is
safe here because the socket pair is shared only with a process that the driver started itself.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["FrameBuffer", "UpdateReport", "WireRequest", "WireResponse", "WorkerConfig", "encode_frame"]

_LENGTH = struct.Struct("<Q")

Message = tuple[Any, ...]


class WireRequest(NamedTuple):
    """A checked request. ``input_ids`` are bytes of int32 ids; ``batch`` is 0, or the number of an ordered batch."""

    number: int
    input_ids: bytes
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop_token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    ignore_eos: bool
    batch: int


class WireResponse(NamedTuple):
    """``output_ids`` are bytes of int32, ``logprobs`` of float32; ``error`` is set when no valid response exists."""

    number: int
    output_ids: bytes
    logprobs: bytes
    version_spans: list[tuple[int, int, int]]
    stop_reason: str
    started_at: float
    finished_at: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What an engine process needs to start. ``weights`` is a ``WeightsHandle``."""

    model_path: str
    num_slots: int
    max_length: int
    device: str
    dtype: str
    num_threads: int
    recompute: bool
    initial_version: int
    weights: Any
    parent_pid: int
    trust_remote_code: bool


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """One weight update as the engine saw it.

    ``blocked_seconds`` is all the time between two decode steps that the update took: ``copy_seconds`` (shared memory
    to parameters), ``prefill_seconds`` (live prefixes again) and the rest. ``prefix_lengths`` are those of the prefixes
    computed again; ``decode_step_seconds`` is the duration of the last decode step before it.
    """

    version: int
    num_live: int
    prefix_lengths: tuple[int, ...]
    num_torn_copies: int
    blocked_seconds: float
    copy_seconds: float
    prefill_seconds: float
    decode_step_seconds: float


def encode_frame(messages: list[Message]) -> bytes:
    """The bytes of one frame."""
    payload = pickle.dumps(messages, protocol=5)
    return _LENGTH.pack(len(payload)) + payload


class FrameBuffer:
    """Collects received bytes and gives out the messages of complete frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Add bytes; return the messages that are complete now."""
        self._bytes += data
        messages: list[Message] = []
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            end = start + _LENGTH.size + length
            if len(self._bytes) < end:
                break
            messages += pickle.loads(self._bytes[start + _LENGTH.size : end])
            start = end
        del self._bytes[:start]
        return messages
