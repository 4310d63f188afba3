"""From a prompt and its completion to a reward model's own token ids, and the tokens at which its scores are read.

| head | scores are read at |
| --- | --- |
| sequence | the last token that is not padding, as transformers does |
| token, no ``step_separator`` | the completion's last token |
| token, ``step_separator`` | the last token of each step, which ends with the separator or with the completion |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import AutoTokenizer

from areal_x.api.config import RewardModelConfig
from areal_x.api.errors import ConfigError
from areal_x.api.records import IntArray
from areal_x.api.reward_model_files import RewardModelFiles
from areal_x.api.reward_records import RewardError
from areal_x.engine.reward_model.rendering import Messages, conversation_text

__all__ = ["Conversation", "ConversationRenderer"]

Indices = npt.NDArray[np.int64]
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_PROBES = ("areal-x-question", "areal-x-answer")


@dataclass(frozen=True, slots=True)
class Conversation:
    """``ids`` int32 [T]; ``positions`` int64, ascending: the tokens at which scores are read."""

    ids: IntArray
    positions: Indices


class ConversationRenderer:
    """Renders conversations for one reward model.

    Args:
        key: what the configuration calls the model, for messages.
        files: its checkpoint.

    Raises:
        ConfigError: the tokenizer does not load, has no chat template where one is needed or one that drops messages,
            gives no places of its tokens where steps are scored, or knows more ids than the model.
    """

    def __init__(
        self, key: str, config: RewardModelConfig, files: RewardModelFiles, *, trust_remote_code: bool = False
    ) -> None:
        self._key = key
        self._config = config
        self._files = files
        limits = [limit for limit in (config.max_length, files.max_positions) if limit is not None]
        self._max_tokens = min(limits)
        # Without a vocabulary transformers makes an empty tokenizer, which drops all text.
        if not trust_remote_code and not any((files.folder / name).is_file() for name in _VOCABULARIES):
            raise ConfigError(f"{key}.path={files.folder}: there is no tokenizer beside the model (tokenizer.json)")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            text = str(error).splitlines()[0]
            raise ConfigError(f"{key}.path={files.folder}: its tokenizer could not be loaded: {text}") from error
        self._pad = self._tokenizer.pad_token_id if files.pad_token_id is None else files.pad_token_id
        self._check_tokenizer()
        if config.chat_template:
            self._check_template()

    def render(self, prompt: str | Messages, completion: str | Messages) -> Conversation:
        """As ``render_all``, of one conversation; raises what is wrong with it."""
        (rendered,) = self.render_all([(prompt, completion)])
        if isinstance(rendered, RewardError):
            raise rendered
        return rendered

    def render_all(
        self, conversations: Iterable[tuple[str | Messages, str | Messages]]
    ) -> list[Conversation | RewardError]:
        """The ids of each (prompt, completion), its end included. Of several messages, the last one's steps are scored.

        A conversation that cannot be rendered, or is too long to be scored, is an error in its place. All texts go to
        the tokenizer in one call, which costs far less than one for each.
        """
        texts = [self._text(*conversation) for conversation in conversations]
        good = [text for text in texts if not isinstance(text, RewardError)]
        encoded = iter(self._encode([text for text, _ in good]) if good else ())
        return [text if isinstance(text, RewardError) else self._placed(*text, *next(encoded)) for text in texts]

    def _text(self, prompt: str | Messages, completion: str | Messages) -> tuple[str, str] | RewardError:
        """The text of a conversation, and the answer in it."""
        try:
            text = conversation_text(self._tokenizer, prompt, completion, self._config.chat_template)
            return text, completion if isinstance(completion, str) else str(completion[-1]["content"])
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            return RewardError(f"{self._key}: the conversation cannot be rendered: {error}")

    def _encode(self, texts: list[str]) -> Iterator[tuple[IntArray, Indices | None]]:
        """The ids of each text and, where scores are those of tokens, the place in the text where each of them ends."""
        needs_places = self._files.head == "token"
        encoded = self._tokenizer(
            texts, add_special_tokens=not self._config.chat_template, return_offsets_mapping=needs_places
        )
        for place, ids in enumerate(encoded["input_ids"]):
            offsets = encoded["offset_mapping"][place] if needs_places else None
            ends = None if offsets is None else np.asarray([end for _, end in offsets], dtype=np.int64)
            yield np.asarray(ids, dtype=np.int32), ends

    def _placed(self, text: str, answer: str, ids: IntArray, ends: Indices | None) -> Conversation | RewardError:
        """The conversation with the tokens at which its scores are read."""
        if len(ids) > self._max_tokens:
            return RewardError(
                f"{self._key}: the conversation has {len(ids)} tokens of the reward model; it takes {self._max_tokens} "
                f"({self._key}.max_length={self._config.max_length})"
            )
        if not len(ids):
            return RewardError(f"{self._key}: the conversation is empty")
        if ends is not None:
            positions = self._step_positions(text, answer, ends)
            return positions if isinstance(positions, RewardError) else Conversation(ids, positions)
        kept = np.flatnonzero(ids != self._pad)
        return Conversation(ids, np.array([kept[-1] if len(kept) else len(ids) - 1], dtype=np.int64))

    def _step_positions(self, text: str, completion: str, ends: Indices) -> Indices | RewardError:
        """The token that holds the last character of each step; ``ends`` is where each token ends in ``text``."""
        shown = completion if completion in text else completion.strip()
        start = text.rfind(shown) if shown else -1
        if start < 0:
            if shown:
                return RewardError(f"{self._key}: the chat template changes the completion, so its steps are not found")
            return np.array([len(ends) - 1], dtype=np.int64)
        cuts = _step_ends(shown, self._config.step_separator)
        # A special token that a tokenizer adds covers no text; its end is 0, so only a running maximum ascends.
        places = np.searchsorted(np.maximum.accumulate(ends), start + np.asarray(cuts), side="left")
        positions: Indices = np.unique(np.minimum(places, len(ends) - 1)).astype(np.int64)
        return positions

    def _check_tokenizer(self) -> None:
        known = len(self._tokenizer)
        if known > self._files.vocabulary_size:
            raise ConfigError(
                f"{self._key}.path={self._files.folder}: its tokenizer knows {known} tokens and its embedding "
                f"{self._files.vocabulary_size}; the tokenizer is another model's"
            )
        if self._files.head == "token" and not self._tokenizer.is_fast:
            raise ConfigError(
                f"{self._key}.path={self._files.folder}: its tokenizer does not tell where a token lies in the text, "
                "which scores of tokens need; save a fast one (tokenizer.json) beside the model"
            )

    def _check_template(self) -> None:
        """A conversation of two messages must be seen whole."""
        place = f"{self._key}.path={self._files.folder}"
        if not getattr(self._tokenizer, "chat_template", None):
            raise ConfigError(f"{place}: its tokenizer has no chat template; set {self._key}.chat_template=false")
        try:
            text = conversation_text(self._tokenizer, *_PROBES, chat_template=True)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"{place}: its chat template fails: {error}") from error
        if any(probe not in text for probe in _PROBES):
            raise ConfigError(f"{place}: its chat template drops the prompt or the completion; it cannot score them")


def _step_ends(completion: str, separator: str | None) -> list[int]:
    """Where each step ends (exclusive) in a completion that is not empty; what is only white space is no step."""
    if separator is None:
        return [len(completion)]
    ends, start = [], 0
    while (found := completion.find(separator, start)) >= 0:
        start = found + len(separator)
        ends.append(start)
    if completion[start:].strip():
        ends.append(len(completion))
    return ends
