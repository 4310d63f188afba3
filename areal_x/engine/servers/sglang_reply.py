"""Reads what SGLang streams: new tokens alone (``--incremental-streaming-output``) or, each time, all so far."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from areal_x.engine.servers.dialect import FINISHES, UNREADABLE, Finish, Piece, ServerError, read_spans

__all__ = ["SglangReply"]

_NAN_STOP = "NaN happened"


class SglangReply:
    """Reads the messages of one streamed reply (see ``ReplyReader``), with new tokens alone or with all so far."""

    def __init__(self) -> None:
        self._num_tokens = 0

    def read(self, message: bytes) -> Piece | None:
        """See ``ReplyReader.read``."""
        try:
            found = json.loads(message)
            if "error" in found:
                error = found["error"]
                raise ServerError(f"SGLang ended the request: {error['message']}", int(error.get("code") or 500))
            info = found["meta_info"]
            reason = info["finish_reason"]
            total = int(info["completion_tokens"])
            entries = info.get("output_token_logprobs")
            is_abort = reason is not None and reason["type"] == "abort"
            if is_abort and entries is None:
                # The tokens of such a message may be those of the one before; nothing tells.
                total = self._num_tokens
            ids, logprobs = self._new_tokens(found["output_ids"], entries, total)
            ended = None if reason is None else _finish(reason)
        except UNREADABLE as error:
            raise ServerError(f"a reply of SGLang is not what version 0.5.23 sends: {error!r:.200}") from error
        self._num_tokens = total
        if ended is None:
            return Piece(ids, logprobs) if ids else None
        spans = read_spans(info.get("weight_versions"), "SGLang")
        # An abort may count tokens that were never sent.
        sent = [(start, min(end, total), version) for start, end, version in spans if start < total]
        return Piece(ids, logprobs, Finish(ended, sent))

    def _new_tokens(
        self, output_ids: list[int], entries: list[list[Any]] | None, total: int
    ) -> tuple[list[int], list[float]]:
        if entries is None:
            ids = [int(token) for token in self._new(output_ids, total)]
            return ids, [math.nan] * len(ids)
        # Not from ``output_ids``: an aborted request repeats its last one.
        new = self._new(entries, total)
        logprobs = [float(entry[0]) for entry in new]
        if any(not -math.inf < value <= 1e-3 for value in logprobs):
            raise ServerError(f"SGLang sent a log-probability that is none: {logprobs}; are the weights finite?")
        return [int(entry[1]) for entry in new], logprobs

    def _new(self, values: list[Any], total: int) -> list[Any]:
        if len(values) == total:
            return values[self._num_tokens :]
        num_new = total - self._num_tokens
        if num_new < 0 or len(values) < num_new:
            raise ServerError(f"SGLang sent {len(values)} tokens to go from {self._num_tokens} to {total}")
        return values[:num_new]


def _finish(reason: dict[str, Any]) -> Literal["stop", "length", "abort"]:
    kind = reason["type"]
    if kind == "abort" and reason.get("status_code"):
        raise ServerError(f"SGLang ended the request: {reason.get('message')}", int(reason["status_code"]))
    if reason.get("matched") == _NAN_STOP:
        raise ServerError("SGLang sampled from values that are not numbers; are the weights finite?")
    if kind not in FINISHES:
        raise ServerError(f"SGLang ended the request with {kind!r}")
    return FINISHES[kind]
