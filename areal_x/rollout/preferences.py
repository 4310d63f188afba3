"""Preference pairs from files and the hub, in the two shapes that data sets use: ::

    prompt: text or messages          chosen, rejected: the answer, as text or as the message(s) of one
    (no prompt needed)                chosen, rejected: whole conversations, which begin with the same messages

Whatever is wrong is named by file and line. Pairs that say nothing (equal answers, an empty one) are left out, counted.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from areal_x.api.config import DataConfig, ExperimentConfig
from areal_x.api.data_file_checks import names_a_file
from areal_x.api.errors import DataError
from areal_x.api.train_config import PreferenceConfig
from areal_x.rollout.dataset import Located, read_split

__all__ = ["PreferencePair", "Preferences", "check_first_pair", "load_preferences", "parse_pairs"]

Text = str | list[dict[str, Any]]
Row = dict[str, Any]
HELD_OUT_SHARE = 20
"""One prompt of so many is held out where no held-out data is named."""


@dataclass(frozen=True)
class PreferencePair:
    """One prompt and two answers to it, each text or chat messages, and where the pair stands (``train.jsonl:3``)."""

    prompt: Text
    chosen: Text
    rejected: Text
    place: str


@dataclass
class Preferences:
    """Pairs to train on, pairs that are held out, and how many were left out for each reason."""

    train: list[PreferencePair]
    held_out: list[PreferencePair]
    left_out: dict[str, int] = field(default_factory=dict)


def load_preferences(config: ExperimentConfig) -> Preferences:
    """Read and check all that ``preferences`` names; of a hub data set ``data.subset`` and ``data.split``.

    Raises:
        DataError: a file or a line is wrong, or nothing is left to train on or to hold out.
    """
    path = config.preferences.path
    data = _data_config(config)
    left_out: dict[str, int] = {}
    pairs = parse_pairs(read_split(data, "train")[0], config.preferences, left_out)
    if not pairs:
        raise DataError(f"preferences.path={path}: holds no pair to train on{_told(left_out)}")
    located, source = read_split(data, "eval")
    if not source:
        return Preferences(*_split(pairs, config.seed, path), left_out)
    held_out = parse_pairs(located, config.preferences, left_out)
    if not held_out:
        raise DataError(f"preferences.eval_path={source}: holds no pair{_told(left_out)}")
    return Preferences(pairs, held_out, left_out)


def check_first_pair(config: ExperimentConfig) -> None:
    """Read the first pair of files, so that a wrong column is told before anything is loaded. The hub is not asked.

    Raises:
        DataError: as ``load_preferences``.
    """
    data = _data_config(config)
    for split, path in (("train", data.path), ("eval", data.eval_path)):
        if path is not None and names_a_file(path):
            parse_pairs(itertools.islice(read_split(data, split)[0], 1), config.preferences, {})


def _data_config(config: ExperimentConfig) -> DataConfig:
    preferences = config.preferences
    assert preferences.path is not None
    return DataConfig(
        path=preferences.path,
        eval_path=preferences.eval_path,
        subset=config.data.subset,
        split=config.data.split,
        kwargs=config.data.kwargs,
    )


def _told(left_out: dict[str, int]) -> str:
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    return f" (left out: {told})" if told else ""


def _split(
    pairs: list[PreferencePair], seed: int, path: str | None
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Hold out one prompt in twenty with all its pairs, so that no prompt is on both sides."""
    prompts = [json.dumps(pair.prompt) for pair in pairs]
    different = sorted(set(prompts))
    if len(different) < 2:
        raise DataError(f"preferences.path={path}: all pairs have one prompt, so none can be held out; add prompts")
    order = np.random.default_rng(seed).permutation(len(different))
    chosen = {different[index] for index in order[: max(1, len(different) // HELD_OUT_SHARE)]}
    train = [pair for pair, prompt in zip(pairs, prompts, strict=True) if prompt not in chosen]
    return train, [pair for pair, prompt in zip(pairs, prompts, strict=True) if prompt in chosen]


def parse_pairs(located: Located, preferences: PreferenceConfig, left_out: dict[str, int]) -> list[PreferencePair]:
    """The pairs of located rows. Those that say nothing are counted in ``left_out``: ``equal``, ``empty``.

    Raises:
        DataError: a row lacks a column, or holds something that is no pair.
    """
    pairs = []
    for place, row in located:
        pair = _pair(row, place, preferences)
        reason = "equal" if pair.chosen == pair.rejected else "empty" if _has_empty(pair) else None
        if reason is None:
            pairs.append(pair)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    return pairs


def _has_empty(pair: PreferencePair) -> bool:
    texts = (
        answer if isinstance(answer, str) else str(answer[-1]["content"]) for answer in (pair.chosen, pair.rejected)
    )
    return not all(text.strip() for text in texts)


def _pair(row: Row, place: str, preferences: PreferenceConfig) -> PreferencePair:
    keys = {"chosen": preferences.chosen_key, "rejected": preferences.rejected_key}
    chosen, rejected = (_text(row, place, key, f"preferences.{role}_key") for role, key in keys.items())
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(
            f"{place}: columns {keys['chosen']!r} and {keys['rejected']!r} are text and messages; make both the same"
        )
    if isinstance(chosen, str) or isinstance(rejected, str):
        assert isinstance(chosen, str) and isinstance(rejected, str)
        # Conversations written out as plain text, markers of the turns and all, need no prompt.
        is_whole = preferences.prompt_key not in row and not preferences.chat_template
        return PreferencePair("" if is_whole else _prompt(row, place, preferences), chosen, rejected, place)
    if not preferences.chat_template:
        raise DataError(f"{place}: the answers are chat messages; they need preferences.chat_template=true")
    for role, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1]["role"] != "assistant":
            raise DataError(
                f"{place}: column {keys[role]!r} ends with a message of {messages[-1]['role']!r}; the answer that is "
                "judged must be the assistant's, and come last"
            )
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        return PreferencePair(_prompt(row, place, preferences), chosen, rejected, place)
    return _conversations(chosen, rejected, place)


def _conversations(chosen: list[Row], rejected: list[Row], place: str) -> PreferencePair:
    """Whole conversations: what they begin with alike is the prompt; each keeps its last message at least."""
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if same == 0:
        raise DataError(
            f"{place}: the conversations chosen and rejected begin with different messages; both must answer one prompt"
        )
    return PreferencePair(chosen[:same], chosen[same:], rejected[same:], place)


def _prompt(row: Row, place: str, preferences: PreferenceConfig) -> Text:
    prompt = _text(row, place, preferences.prompt_key, "preferences.prompt_key")
    if isinstance(prompt, str) and not prompt.strip():
        raise DataError(f"{place}: the prompt (column {preferences.prompt_key!r}) is empty")
    if not isinstance(prompt, str) and not preferences.chat_template:
        raise DataError(f"{place}: the prompt holds chat messages; they need preferences.chat_template=true")
    return prompt


def _text(row: Row, place: str, column: str, key: str) -> Text:
    """A column that holds text, or chat messages as far as they matter here."""
    if column not in row:
        raise DataError(f"{place}: no column {column!r}, only {_names(row)}; set {key} to the right one")
    value = row[column]
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        kind = {"NoneType": "null", "list": "an empty list"}.get(
            type(value).__name__, f"of type {type(value).__name__}"
        )
        raise DataError(f"{place}: column {column!r} is {kind}; expected text or a list of messages")
    for number, message in enumerate(value, start=1):
        good = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not good or not isinstance(message.get("content"), str | list):
            raise DataError(f"{place}: message {number} of column {column!r} is not an object with role and content")
    return value


def _names(row: Iterable[Any]) -> str:
    names: Sequence[str] = [str(name) for name in row]
    return ", ".join(names) or "no columns"
