"""Ids to text and back with the compiled tokenizer alone, where transformers would add nothing to it.

For a short completion transformers' own Python costs many times what the tokenizer costs. It is left out only where the
result is the same to the last character; every other tokenizer is asked as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Decode", "text_decoder", "text_encoder"]


class Decode(Protocol):
    """The text of ids."""

    def __call__(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


def text_decoder(tokenizer: Any) -> Decode:
    """What ``tokenizer.decode`` gives for a list of ids."""
    if not _is_plain(tokenizer, "decode", "_decode"):
        own: Decode = tokenizer.decode
        return own

    def decode(token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        how = tokenizer.decode if tokenizer.clean_up_tokenization_spaces else tokenizer.backend_tokenizer.decode
        text: str = how(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    return decode


def text_encoder(tokenizer: Any) -> Callable[[str, bool], list[int]]:
    """The ``input_ids`` of what ``tokenizer(text, add_special_tokens=...)`` gives."""

    def ask(text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    is_plain = _is_plain(tokenizer, "__call__", "_encode_plus", "set_truncation_and_padding")
    if not is_plain or hasattr(tokenizer, "_switch_to_input_mode"):
        return ask

    def encode(text: str, add_special_tokens: bool) -> list[int]:
        backend = tokenizer.backend_tokenizer
        is_set = backend.truncation is None and backend.padding is None
        if not is_set or backend.encode_special_tokens != tokenizer.split_special_tokens:
            return ask(text, add_special_tokens)
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:  # Text that is no Unicode; the tokenizer says so in its own words.
            return ask(text, add_special_tokens)
        # Of a longer one transformers warns.
        return ids if len(ids) <= tokenizer.model_max_length else ask(text, add_special_tokens)

    return encode


def _is_plain(tokenizer: Any, *names: str) -> bool:
    """Whether these methods are those of every tokenizer of transformers that has a compiled one."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return False
    from transformers import PreTrainedTokenizerFast

    return all(
        getattr(getattr(tokenizer, name), "__func__", None) is getattr(PreTrainedTokenizerFast, name) for name in names
    )
