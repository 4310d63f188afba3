"""What a reward model reads: one prompt and its completion, as text and as its own token ids.

Training, scoring and a reader who calls transformers by hand must see the same tokens, so all come through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Messages", "conversation_ids", "conversation_text"]

Messages = Sequence[Mapping[str, Any]]


def conversation_text(tokenizer: Any, prompt: str | Messages, completion: str | Messages, chat_template: bool) -> str:
    """The text of one conversation, its end included, whose last token gives the score.

    Args:
        tokenizer: the reward model's own.
        prompt: text (one user message), or chat messages.
        completion: text (one assistant message), or chat messages.
        chat_template: render through the tokenizer's chat template. False: prompt and completion end to end.

    Raises:
        ValueError: chat messages without a template.
    """
    if not chat_template:
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise ValueError("chat messages need a chat template")
        return prompt + completion
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    answered = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    text: str = tokenizer.apply_chat_template([*asked, *answered], tokenize=False, add_generation_prompt=False)
    return text


def conversation_ids(
    tokenizer: Any, prompt: str | Messages, completion: str | Messages, chat_template: bool
) -> list[int]:
    """Token ids of ``conversation_text``; a chat template writes its special tokens itself.

    Raises:
        ValueError: as ``conversation_text``.
    """
    text = conversation_text(tokenizer, prompt, completion, chat_template)
    ids: list[int] = tokenizer(text, add_special_tokens=not chat_template)["input_ids"]
    return ids
