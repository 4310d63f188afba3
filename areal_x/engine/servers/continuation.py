"""One completion that may come from several servers: what is kept, where it goes on, and which versions are certain.

Pure: no server and no clock. A ``Completion`` collects ``Part``s, one for each server that worked on it. A part that
ended with the server's final message has the server's own word for its versions. A part that broke off keeps only
tokens whose version is certain: those that arrived before the first weight update that the server resumed from since
the part began were sampled from the version of its beginning, because a paused server samples nothing. What arrived
later may hold tokens of both versions and is sampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from areal_x.api.records import ModelRequest, ModelResponse, StopReason, VersionSpan
from areal_x.engine.inference.requests import derive_seed
from areal_x.engine.servers.dialect import Finish, Piece, ServerError

__all__ = ["Completion", "Part", "checked_spans", "find_seam_stop", "part_seed"]

_SEED_MASK = 2**63 - 1
_SPARE_TOKENS = 8


def part_seed(seed: int, offset: int) -> int:
    """The seed of a part that begins after ``offset`` tokens, 63 bits, which every server takes."""
    return seed & _SEED_MASK if offset == 0 else derive_seed(seed, offset) & _SEED_MASK


def checked_spans(finish: Finish, length: int, oldest: int, newest: int) -> list[VersionSpan]:
    """The spans that a server states for its ``length`` tokens, neighbours of one version joined.

    Raises:
        ServerError: they are no whole numbers, leave gaps, overlap, or name a version that the server did not hold
            while it worked on this part (``oldest`` to ``newest``).
    """
    spans: list[VersionSpan] = []
    for start, end, version in finish.spans:
        whole = type(start) is int and type(end) is int and type(version) is int
        if not whole or start != (spans[-1].end if spans else 0) or end <= start:
            raise ServerError(f"versions {finish.spans!r} do not cover tokens 0 to {length} without gaps")
        if not (spans[-1].version if spans else oldest) <= version <= newest:
            held = f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}"
            raise ServerError(f"it says that tokens {start} to {end} are of version {version}, but it was given {held}")
        if spans and spans[-1].version == version:
            start = spans.pop().start
        spans.append(VersionSpan(start, end, version))
    if (spans[-1].end if spans else 0) != length:
        raise ServerError(f"versions {finish.spans!r} do not cover the {length} tokens that it sent")
    return spans


def find_seam_stop(
    tokens: Sequence[int], seams: Sequence[int], stop: Sequence[str], decode: Callable[[list[int]], str]
) -> int | None:
    """Length of the shortest completion in which a stop string lies across a seam, ``None`` if there is none.

    Each server looks for stop strings in its own part alone, so only those that cross a seam can be missed: they end
    at most their length in bytes after it, since a token of text has at least one byte.
    """
    reach = max(len(text.encode()) for text in stop) + _SPARE_TOKENS
    for seam in seams:
        for end in range(seam + 1, min(len(tokens), seam + reach) + 1):
            text = decode(list(tokens[max(0, end - reach) : end]))
            if any(string in text for string in stop):
                return end
    return None


class Part:
    """What one server sends for a completion. ``epoch`` counts the weight updates that it has resumed from."""

    __slots__ = ("epoch", "finish", "logprobs", "max_new_tokens", "num_certain", "token_ids", "version")

    def __init__(self, version: int, epoch: int, max_new_tokens: int) -> None:
        self.version = version
        self.epoch = epoch
        self.max_new_tokens = max_new_tokens
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.num_certain = 0
        self.finish: Finish | None = None

    def add(self, piece: Piece, epoch: int) -> None:
        """Take one message's piece, which arrived in the server's ``epoch``.

        Raises:
            ServerError: it does not fit: lengths differ, more tokens than asked for, or tokens after the end.
        """
        if self.finish is not None:
            raise ServerError("it sent tokens after the end of a completion")
        if len(piece.token_ids) != len(piece.logprobs):
            raise ServerError(f"it sent {len(piece.token_ids)} tokens with {len(piece.logprobs)} log-probabilities")
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        if len(self.token_ids) > self.max_new_tokens:
            raise ServerError(f"it sent {len(self.token_ids)} tokens where {self.max_new_tokens} were asked for")
        if epoch == self.epoch:
            self.num_certain = len(self.token_ids)
        self.finish = piece.finish


class Completion:
    """A completion in the making.

    Args:
        request: what is asked; its ids and values are checked.
        max_new_tokens: what the context leaves of the request's own.
        seed: of the whole completion; later parts derive theirs.
        eos_ids: ids that end a completion unless the request ignores them.
    """

    __slots__ = (
        "_input_ids",
        "_logprobs",
        "_max_new_tokens",
        "_seed",
        "_spans",
        "_stop_ids",
        "num_thrown_away",
        "request",
        "seams",
        "stop_reason",
        "token_ids",
    )

    def __init__(self, request: ModelRequest, max_new_tokens: int, seed: int, eos_ids: Sequence[int]) -> None:
        sampling = request.sampling
        self.request = request
        self.token_ids: list[int] = []
        self.seams: list[int] = []
        """Places where one part ends and another begins."""
        self.num_thrown_away = 0
        """Tokens that were sampled, but of no certain version."""
        self.stop_reason: StopReason | None = None
        """How it ended; ``None`` while it has to go on."""
        self._input_ids: list[int] = request.input_ids.tolist()
        self._logprobs: list[float] = []
        self._spans: list[VersionSpan] = []
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._stop_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_ids)}

    @property
    def input_ids(self) -> list[int]:
        """Prompt of the next part: the request's own and every token that is kept."""
        return self._input_ids + self.token_ids if self.token_ids else self._input_ids

    @property
    def remaining(self) -> int:
        """Tokens that the next part may have."""
        return self._max_new_tokens - len(self.token_ids)

    @property
    def seed(self) -> int:
        """Seed of the next part."""
        return part_seed(self._seed, len(self.token_ids))

    def begin(self, version: int, epoch: int) -> Part:
        """The next part, on a server that holds ``version`` and is not paused."""
        return Part(version, epoch, self.remaining)

    def settle(self, part: Part, newest: int) -> None:
        """Take over what of a part is certain; the rest is thrown away and has to be sampled again.

        Args:
            part: one that ended or broke off.
            newest: the newest version that its server has held meanwhile.

        Raises:
            ServerError: what the server says of its versions cannot be; nothing of the part is taken.
        """
        finish = part.finish
        if finish is None:
            kept = part.num_certain
            spans = [VersionSpan(0, kept, part.version)] if kept else []
        else:
            kept = len(part.token_ids)
            spans = checked_spans(finish, kept, part.version, newest)
        # Not every server heeds stop ids when it ignores end of sequence.
        kept = next((n for n, token in enumerate(part.token_ids[:kept], 1) if token in self._stop_ids), kept)
        spans = [VersionSpan(start, min(end, kept), version) for start, end, version in spans if start < kept]
        offset = len(self.token_ids)
        if kept:
            if offset:
                self.seams.append(offset)
            for start, end, version in spans:
                start, end = start + offset, end + offset
                if self._spans and self._spans[-1].version == version:
                    start = self._spans.pop().start
                self._spans.append(VersionSpan(start, end, version))
            self.token_ids += part.token_ids[:kept]
            self._logprobs += part.logprobs[:kept]
        self.num_thrown_away += len(part.token_ids) - kept
        self.stop_reason = self._ended(finish)

    def _ended(self, finish: Finish | None) -> StopReason | None:
        if finish is not None and finish.reason == "stop":
            return "stop"
        if self.token_ids and self.token_ids[-1] in self._stop_ids:
            return "stop"
        # A server that ends a completion for its length before that length is reached has not ended it.
        return "length" if self.remaining == 0 else None

    def cut(self, length: int) -> None:
        """End after ``length`` tokens, where a stop string is complete."""
        del self.token_ids[length:], self._logprobs[length:]
        self._spans = [VersionSpan(a, min(b, length), version) for a, b, version in self._spans if a < length]
        self.seams = [seam for seam in self.seams if seam < length]
        self.stop_reason = "stop"

    def response(self, vocab_size: int, allow_nan: bool, started_at: float, finished_at: float) -> ModelResponse:
        """The finished completion.

        Args:
            vocab_size: ids are below it.
            allow_nan: whether log-probabilities may be missing (NaN).

        Raises:
            ServerError: an id is outside the vocabulary, or a log-probability is no finite number.
        """
        assert self.stop_reason is not None
        bad = next((token for token in self.token_ids if not 0 <= token < vocab_size), None)
        if bad is not None:
            raise ServerError(f"it sampled id {bad}, outside the model's vocabulary of {vocab_size}")
        output_ids = np.array(self.token_ids, dtype=np.int32)
        logprobs = np.array(self._logprobs, dtype=np.float32)
        fine = np.isfinite(logprobs) | np.isnan(logprobs) if allow_nan else np.isfinite(logprobs)
        if not fine.all():
            place = int(np.flatnonzero(~fine)[0])
            raise ServerError(f"the log-probability of token {place} is {logprobs[place]}, no finite number")
        return ModelResponse(
            self.request.request_id,
            self.request.input_ids,
            output_ids,
            logprobs,
            self._spans,
            self.stop_reason,
            started_at,
            finished_at,
        )
