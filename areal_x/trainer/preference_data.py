"""Preference pairs as token ids: rendered once, checked, and drawn in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from areal_x.api.errors import ConfigError, DataError
from areal_x.api.records import IntArray
from areal_x.engine.reward_model.preference_batch import PreferenceBatch, join_pairs
from areal_x.engine.reward_model.rendering import conversation_ids
from areal_x.rollout.preferences import PreferencePair

__all__ = ["EncodedPairs", "encode_pairs", "ensure_padding"]

PADDING = "<|pad|>"
IdPair = tuple[IntArray, IntArray]


@dataclass(frozen=True)
class EncodedPairs:
    """(chosen, rejected) ids of each pair, int32, and the pairs themselves."""

    ids: list[IdPair]
    pairs: list[PreferencePair]

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, limit: int | None) -> PreferenceBatch:
        """The first so many pairs as one batch; all of them with ``None``."""
        return join_pairs(self.ids[:limit])

    def batches(self, batch_size: int, seed: int) -> Iterator[PreferenceBatch]:
        """Endless batches in a new order each epoch; an epoch's rest that fills no batch is carried into the next."""
        generator = np.random.default_rng(seed)
        queue = np.empty(0, dtype=np.int64)
        while True:
            while len(queue) < batch_size:
                queue = np.concatenate([queue, generator.permutation(len(self))])
            chosen, queue = queue[:batch_size], queue[batch_size:]
            yield join_pairs([self.ids[index] for index in chosen])


def encode_pairs(
    pairs: Sequence[PreferencePair], tokenizer: Any, *, chat_template: bool, max_length: int, left_out: dict[str, int]
) -> EncodedPairs:
    """Encode every pair once. Those with a conversation of over ``max_length`` tokens, or of equal ids, are left out
    and counted in ``left_out``: ``too long``, ``equal``.

    Raises:
        ConfigError: a chat template is needed and the tokenizer has none.
        DataError: a conversation does not fit the template, or no pair is left.
    """
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError("the tokenizer has no chat template; set preferences.chat_template=false to join the texts")
    kept: list[PreferencePair] = []
    ids: list[IdPair] = []
    for pair in pairs:
        try:
            chosen, rejected = (
                np.array(conversation_ids(tokenizer, pair.prompt, answer, chat_template), dtype=np.int32)
                for answer in (pair.chosen, pair.rejected)
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"{pair.place}: the chat template does not take this conversation: {error}") from error
        reason = (
            "too long"
            if max(len(chosen), len(rejected)) > max_length
            else "equal"
            if np.array_equal(chosen, rejected)
            else None
        )
        if reason is None:
            kept.append(pair)
            ids.append((chosen, rejected))
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    if not kept:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise DataError(f"no preference pair is left ({told}); preferences.max_length={max_length} tokens")
    return EncodedPairs(ids, kept)


def ensure_padding(tokenizer: Any, encoded: Sequence[EncodedPairs]) -> int:
    """The id of a padding token that no conversation ends with; the tokenizer gets a new one where it has none.

    transformers takes the score at the last token that is not padding. A model whose end-of-text token is its padding,
    too, would be read one token early.
    """
    endings = {int(ids[-1]) for one in encoded for pair in one.ids for ids in pair}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in endings:
        tokenizer.add_special_tokens({"pad_token": PADDING})
    padding: int = tokenizer.pad_token_id
    if padding in endings:
        raise DataError(f"conversations end with the padding token {tokenizer.pad_token!r}; give the tokenizer another")
    return padding
