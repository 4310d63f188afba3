"""The text of a chat completion, where it is whole."""

from __future__ import annotations

from typing import Any

from areal_x.reward.judge.cache import CachedReply
from areal_x.reward.judge.errors import JudgeReplyError

__all__ = ["read_reply"]

_WHOLE = ("stop", "eos", "eos_token", "stop_sequence")
"""Reasons to finish that mean the end of the text; servers that state none are believed."""
_CUT = ("length", "max_tokens")
_MAX_TOKENS = 10**7
"""More than any request can take, so a server that counts more is not believed."""


def read_reply(reply: dict[str, Any]) -> CachedReply:
    """The text and the tokens of a decoded ``/chat/completions`` reply.

    Raises:
        JudgeReplyError: it has no choice or no text, was cut at the length limit or by a filter, ended in another way
            than by the end of its text, or is a refusal.
    """
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        names = ", ".join(name[:100] for name in list(reply)[:10])
        raise JudgeReplyError(f"the reply has no choices; it has: {names or 'nothing'}")
    reason = choice.get("finish_reason")
    if reason in _CUT:
        raise JudgeReplyError("the reply was cut at its length limit; raise max_tokens in sampling")
    if reason == "content_filter":
        raise JudgeReplyError("the reply was cut by the server's content filter")
    if reason is not None and reason not in _WHOLE:
        raise JudgeReplyError(f"the reply is not whole: its finish_reason is {_shown(reason)}")
    if message.get("refusal"):
        raise JudgeReplyError(f"the judge refused: {_shown(message['refusal'])}")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        raise JudgeReplyError(f"the reply's text is empty (finish_reason {_shown(reason)})")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return CachedReply(text, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int:
    return min(value, _MAX_TOKENS) if type(value) is int and value > 0 else 0


def _shown(value: Any) -> str:
    """What a server sent, for an error message; not the inside of lists and objects, which can be deep."""
    return repr(value[:200]) if isinstance(value, str) else type(value).__name__
