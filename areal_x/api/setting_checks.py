"""Checks of settings that several parts of a configuration have: sampling, and functions named in files."""

from __future__ import annotations

from pathlib import Path

from areal_x.api.check_values import at_least, bad_value
from areal_x.api.checkpoint_config import SamplingConfig
from areal_x.api.data_file_checks import searched
from areal_x.api.import_paths import check_library, split_library

__all__ = ["check_reference", "check_sampling"]


def check_sampling(key: str, sampling: SamplingConfig, training: bool) -> None:
    """Raise ``ConfigError`` for sampling parameters that cannot work, or that ``training`` cannot use."""
    at_least(f"{key}.max_new_tokens", sampling.max_new_tokens, 1)
    at_least(f"{key}.temperature", sampling.temperature, 0)
    if training and sampling.temperature == 0:
        raise bad_value(f"{key}.temperature", 0, "greedy samples of a prompt are all alike; training needs it above 0")
    if not 0 < sampling.top_p <= 1:
        raise bad_value(f"{key}.top_p", sampling.top_p, "must be above 0 and at most 1")
    at_least(f"{key}.top_k", sampling.top_k, 0)
    for name, value, whole in (("top_p", sampling.top_p, 1), ("top_k", sampling.top_k, 0)):
        if training and value != whole:
            why = "training needs untruncated samples, because its log-probabilities are those of temperature alone"
            raise bad_value(f"{key}.{name}", value, f"{why}; use {whole}")
    if any(not text for text in sampling.stop):
        raise bad_value(f"{key}.stop", sampling.stop, "a stop string must not be empty")
    if any(token < 0 for token in sampling.stop_token_ids):
        raise bad_value(f"{key}.stop_token_ids", sampling.stop_token_ids, "token ids must be 0 or more")


def check_reference(key: str, value: str | None) -> None:
    """A reference to a file of the user's (``file.py:name``) must have a name, and the file must exist."""
    if value is None or ".py" not in value:
        return
    check_library(value, key)
    library, path = split_library(value)
    file, _, name = path.partition(":")
    if not name and library is None:
        raise bad_value(key, value, f"write {file}:NAME, with the name of what to take from the file")
    if not Path(file).expanduser().is_file():
        raise bad_value(key, value, f"no such file: {file}{searched(file)}")
