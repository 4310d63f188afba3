"""What ends a completion besides its length: end-of-sequence ids of the model, and strings in the decoded text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["end_of_sequence_ids", "find_stop_string", "has_tokenizer", "load_tokenizer"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_SPARE_TOKENS = 8


def has_tokenizer(model_path: str) -> bool:
    """Whether there is a tokenizer; false only for a directory without one."""
    path = Path(model_path)
    return not path.is_dir() or any((path / name).exists() for name in _TOKENIZER_FILES)


def load_tokenizer(model_path: str, trust_remote_code: bool = False) -> Any | None:
    """The model's tokenizer; ``None`` when ``model_path`` is a directory without one."""
    if not has_tokenizer(model_path):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)


def end_of_sequence_ids(model: Any, tokenizer: Any | None) -> tuple[int, ...]:
    """Every id that the generation config, the model's config or the tokenizer calls end of sequence, sorted."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return tuple(sorted(found))


def find_stop_string(tokenizer: Any, completion: npt.NDArray[np.int32], stop: Sequence[str]) -> bool:
    """Whether the decoded end of ``completion`` holds one of the strings.

    Called after every token, so only a string that the last token finished can be new: a tail of as many tokens as the
    longest string has bytes is enough, since a token of text has at least one.
    """
    longest = max(len(text.encode()) for text in stop)
    tail = completion[-(longest + _SPARE_TOKENS) :].tolist()
    text = tokenizer.decode(tail, skip_special_tokens=True)
    return any(string in text for string in stop)
