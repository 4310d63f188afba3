"""A tokenizer for endpoints that take and give text: ids are UTF-8 bytes, and three more ids frame chat messages.

    <role>user</role-end>1 + 1?<end>          as ids: 256, b"user", 257, b"1 + 1?", 258

Workflows handle ids; an engine turns framed ids back into the messages that the endpoint is asked with. In text the
frames are noncharacters of Unicode, which no text that is meant to be exchanged holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from areal_x.api.errors import DataError, RequestError

__all__ = ["TextTokenizer", "messages_from_ids", "text_from_ids"]

ROLE, CONTENT, END = 256, 257, 258
_FRAMES = {"\ufdd0": ROLE, "\ufdd1": CONTENT, "\ufdd2": END}
_FRAME_TEXT = {number: frame for frame, number in _FRAMES.items()}


class TextTokenizer:
    """What workflows use of a Hugging Face tokenizer, for models whose own tokenizer is not known."""

    chat_template = "the endpoint's own"

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """``input_ids`` of a text; the text that ``apply_chat_template`` gives becomes framed messages."""
        ids: list[int] = []
        start = 0
        for place, sign in enumerate(text):
            if sign in _FRAMES:
                ids.extend(_encoded(text[start:place]))
                ids.append(_FRAMES[sign])
                start = place + 1
        ids.extend(_encoded(text[start:]))
        return {"input_ids": ids}

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """The text of ids; frames are left out with ``skip_special_tokens``. Bytes that are no UTF-8 become U+FFFD."""
        pieces: list[str] = []
        run = bytearray()
        for number in np.atleast_1d(np.asarray(token_ids, dtype=np.int64)).tolist():
            if number < ROLE:
                run.append(number)
                continue
            pieces.append(run.decode("utf-8", "replace"))
            run.clear()
            if not skip_special_tokens:
                pieces.append(_FRAME_TEXT[number])
        return "".join([*pieces, run.decode("utf-8", "replace")])

    def batch_decode(self, sequences: Iterable[Any], *, skip_special_tokens: bool = False) -> list[str]:
        """``decode`` of each."""
        return [self.decode(sequence, skip_special_tokens=skip_special_tokens) for sequence in sequences]

    def apply_chat_template(
        self, conversation: Sequence[dict[str, Any]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> Any:
        """Messages as framed text, or as its ids.

        Raises:
            DataError: a message is more than role and text, or holds a frame.
        """
        role_frame, content_frame, end_frame = _FRAMES
        text = ""
        for message in conversation:
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str) or set(message) != {"role", "content"}:
                raise DataError(f"a message for an endpoint holds role and content, both text, not {sorted(message)}")
            if any(frame in role + content for frame in _FRAMES):
                raise DataError("a message holds one of the noncharacters U+FDD0 to U+FDD2; take it out of the data")
            text += role_frame + role + content_frame + content + end_frame
        if add_generation_prompt:
            text += f"{role_frame}assistant{content_frame}"
        return self(text)["input_ids"] if tokenize else text


def _encoded(text: str) -> bytes:
    # Half of a surrogate pair, which JSON can hold, has no UTF-8.
    return text.encode("utf-8", "replace")


def text_from_ids(ids: Sequence[int]) -> str | None:
    """The plain text of ids, ``None`` if they are framed messages."""
    return None if any(number >= ROLE for number in ids) else bytes(ids).decode("utf-8", "replace")


def messages_from_ids(ids: Sequence[int]) -> list[dict[str, str]]:
    """The messages that framed ids hold; the last one is the assistant's turn, which is left out while it is empty.

    Raises:
        RequestError: text stands outside of the frames, or the ids do not end where the assistant begins.
    """
    messages: list[dict[str, str]] = []
    parts: dict[int, bytearray] = {}
    where = END
    for number in ids:
        if number < ROLE:
            if where == END:
                raise RequestError("text stands between two messages of a prompt for an endpoint")
            parts[where].append(number)
        elif (where, number) in ((END, ROLE), (ROLE, CONTENT), (CONTENT, END)):
            where = number
            if number == END:
                messages.append(_message(parts))
            else:
                parts[number] = bytearray()
        else:
            raise RequestError("the messages of a prompt for an endpoint are not framed as its tokenizer frames them")
    if where != CONTENT or parts[CONTENT]:
        raise RequestError("a prompt for an endpoint must end where the assistant's answer begins")
    return messages


def _message(parts: dict[int, bytearray]) -> dict[str, str]:
    role, content = (parts[frame].decode("utf-8", "replace") for frame in (ROLE, CONTENT))
    return {"role": role, "content": content}
