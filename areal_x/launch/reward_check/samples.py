"""The items that a reward is tried on, and the completions of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_x.api.config import DataConfig
from areal_x.api.data_file_checks import names_a_file
from areal_x.api.errors import ConfigError, DataError
from areal_x.launch.reward_check.options import CheckOptions

__all__ = ["GOLD_KEYS", "PROMPT_KEYS", "CheckData", "PromptTexts", "Sample", "find_prompt_key", "load_check_data"]

GOLD_KEYS = ("completion", "solution", "answer", "ground_truth", "gold", "label", "target")
"""Columns that are taken for the gold solution, in this order."""
PROMPT_KEYS = ("prompt", "question", "problem", "query", "instruction", "input")
"""Columns that are taken for the prompt, in this order."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion to score, and what is known of its score."""

    item: int
    """Index of the data item."""
    kind: str
    """Where the completion is from: ``gold``, ``wrong`` and so on, or ``file``."""
    prompt: str
    completion: str
    columns: Row
    """The item's columns without the prompt's."""
    expected: float | None = None
    exact: bool = False
    """``expected`` is the score itself; else it only says on which side of the threshold the score lies."""
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class CheckData:
    """The items, where they come from, and which columns they have."""

    rows: list[Row]
    source: str
    dataset: str | None
    prompt_key: str

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order in which they appear."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def load_check_data(
    data: str | Path | Sequence[Mapping[str, Any]], options: CheckOptions, limit: int | None
) -> CheckData:
    """Read the items from a file (or whatever ``data.path`` may name), or take those given as dicts.

    Raises:
        DataError: a file or a line is wrong, a prompt is missing or empty.
        ConfigError: there is no such data set.
    """
    if not isinstance(data, str | Path):
        return _given_rows(data, options, limit)
    from areal_x.rollout.dataset import load_dataset_items

    path = str(data)
    prompt_key = options.prompt_key or (_prompt_key_of_file(Path(path)) if names_a_file(path) else "prompt")
    try:
        items = load_dataset_items(DataConfig(path=path, name=options.dataset, prompt_key=prompt_key, limit=limit))
    except DataError as error:
        raise DataError(str(error).replace("set data.prompt_key to", "--prompt-key names")) from error
    return CheckData(items.rows, items.source, items.name, prompt_key)


def find_prompt_key(row: Mapping[str, Any]) -> str:
    """The column that looks like the prompt's."""
    return next((key for key in PROMPT_KEYS if key in row), "prompt")


def _prompt_key_of_file(path: Path) -> str:
    from areal_x.rollout.data_files import read_rows

    return next((find_prompt_key(row) for _, row in read_rows(path.expanduser())), "prompt")


def _given_rows(data: Sequence[Mapping[str, Any]], options: CheckOptions, limit: int | None) -> CheckData:
    rows = [dict(row) for row in data[:limit]]
    if not rows:
        raise DataError("data is empty; give at least one item, such as {'prompt': '1+1=', 'answer': '2'}")
    prompt_key = options.prompt_key or find_prompt_key(rows[0])
    for number, row in enumerate(rows):
        if not isinstance(row.get(prompt_key), str | list) or not row[prompt_key]:
            raise DataError(f"data[{number}] has no prompt in column {prompt_key!r}; set prompt_key to its column")
    return CheckData(rows, f"{len(data)} given items", options.dataset, prompt_key)


class PromptTexts:
    """Prompts as text and texts as token ids: by the tokenizer of a model, or plainly where none is given.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """

    def __init__(self, options: CheckOptions, prompt_key: str) -> None:
        self._key = prompt_key
        self._renderer: Any = None
        self._tokenizer: Any = None
        if options.tokenizer is not None:
            from transformers import AutoTokenizer

            from areal_x.workflow.rendering import PromptRenderer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
            except (OSError, ValueError) as error:
                reason = str(error).partition("\n")[0]
                raise ConfigError(f"tokenizer={options.tokenizer!r} cannot be loaded: {reason}") from error
            has_template = bool(getattr(self._tokenizer, "chat_template", None))
            self._renderer = PromptRenderer(self._tokenizer, prompt_key, None, has_template)

    def prompt(self, row: Row) -> str:
        """The prompt of an item as the reward gets it. Without a tokenizer messages stand one below the other."""
        if self._renderer is not None:
            return str(self._renderer.render(row).text)
        prompt = row[self._key]
        if isinstance(prompt, str):
            return prompt
        return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text; without a tokenizer its bytes, so that lengths are at least plausible."""
        if self._tokenizer is None:
            return list(text.encode("utf-8", "replace"))
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
