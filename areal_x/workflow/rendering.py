"""Turns a prompt (text or chat messages) into token ids, once for all episodes of a group."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from areal_x.api.errors import ConfigError, DataError
from areal_x.api.records import IntArray
from areal_x.workflow.texts import text_encoder

__all__ = ["PromptRenderer", "RenderedPrompt", "Tokenizer"]

CACHED_PROMPTS = 4096
_PLACE = "areal-x-assistant-turn"


class Tokenizer(Protocol):
    """What workflows use of a Hugging Face tokenizer."""

    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...


class RenderedPrompt(NamedTuple):
    """The rendered text and its ids, int32 [T], read-only because episodes share them."""

    text: str
    ids: IntArray


class PromptRenderer:
    """Renders prompts through the tokenizer's chat template, or as they are, and remembers the latest ones.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt_key: the column of the prompt, text or a list of messages.
        system_prompt: put before text prompts as a system message.
        chat_template: false: a text prompt is not put into a chat.

    Raises:
        ConfigError: a chat template is needed and the tokenizer has none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_key: str = "prompt",
        system_prompt: str | None = None,
        chat_template: bool = True,
    ) -> None:
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise ConfigError("the tokenizer has no chat template; set data.chat_template=false for plain text prompts")
        if system_prompt is not None and not chat_template:
            raise ConfigError("data.system_prompt needs data.chat_template=true")
        self.tokenizer = tokenizer
        self._encode = text_encoder(tokenizer)
        self.prompt_key = prompt_key
        self.system_prompt = system_prompt
        self.chat_template = chat_template
        self._render_text = functools.lru_cache(CACHED_PROMPTS)(self._render_text_uncached)
        self._render_messages = functools.lru_cache(CACHED_PROMPTS)(self._render_messages_uncached)

    def render(self, data: dict[str, Any]) -> RenderedPrompt:
        """The prompt of one item.

        Raises:
            DataError: the item has no prompt, or one that is neither text nor messages.
        """
        try:
            prompt = data[self.prompt_key]
        except KeyError:
            columns = ", ".join(data)
            raise DataError(
                f"an item has no column {self.prompt_key!r}; set data.prompt_key to one of: {columns}"
            ) from None
        if isinstance(prompt, str):
            return self._render_text(prompt)
        try:
            return self._render_messages(json.dumps(prompt))
        except TypeError as error:
            raise DataError(
                f"column {self.prompt_key!r} holds {type(prompt).__name__}, not text or messages"
            ) from error

    def _render_text_uncached(self, prompt: str) -> RenderedPrompt:
        if not prompt.strip():
            raise DataError(f"an item has an empty prompt in column {self.prompt_key!r}")
        if not self.chat_template:
            return RenderedPrompt(prompt, self._ids(prompt, add_special_tokens=True))
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return self._render_chat([*system, {"role": "user", "content": prompt}])

    def _render_messages_uncached(self, encoded: str) -> RenderedPrompt:
        messages = json.loads(encoded)
        if (
            not isinstance(messages, list)
            or not messages
            or not all(isinstance(m, dict) and "role" in m for m in messages)
        ):
            raise DataError(f"column {self.prompt_key!r} holds neither text nor a list of {{role, content}} messages")
        if not self.chat_template:
            raise DataError(f"column {self.prompt_key!r} holds chat messages; they need data.chat_template=true")
        return self._render_chat(messages)

    def _render_chat(self, messages: Sequence[dict[str, Any]]) -> RenderedPrompt:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return RenderedPrompt(text, self._ids(text, add_special_tokens=False))

    def _ids(self, text: str, *, add_special_tokens: bool) -> IntArray:
        try:
            encoded = self._encode(text, add_special_tokens)
        except Exception as error:  # The boundary to the tokenizers library, whose errors are plain Exceptions.
            raise DataError(f"the tokenizer cannot encode the prompt {text[:80]!r}: {error}") from error
        ids = np.asarray(encoded, dtype=np.int32)
        ids.flags.writeable = False
        return ids

    def render_feedback(self, feedback: str) -> RenderedPrompt:
        """What stands between two sampled assistant turns: its end, a user turn, the next one's beginning.

        Raises:
            ConfigError: the chat template does not show an assistant's message as it is.
        """
        if not self.chat_template:
            return RenderedPrompt(feedback, self._ids(feedback, add_special_tokens=False))
        messages = [
            {"role": "user", "content": "user"},
            {"role": "assistant", "content": _PLACE},
            {"role": "user", "content": feedback},
        ]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        _, place, after = text.rpartition(_PLACE)
        if not place:
            raise ConfigError(
                "the chat template drops assistant messages, so that a second turn cannot be appended to them"
            )
        return RenderedPrompt(after, self._ids(after, add_special_tokens=False))
