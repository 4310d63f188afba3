"""The text of a chat completion, where it is whole."""

from __future__ import annotations

from typing import Any

from areal_x.reward.judge.cache import CachedReply
from areal_x.reward.judge.errors import JudgeReplyError

__all__ = ["read_reply"]


def read_reply(reply: dict[str, Any]) -> CachedReply:
    """The text and the tokens of a decoded ``/chat/completions`` reply.

    Raises:
        JudgeReplyError: it has no choice or no text, was cut at the length limit or by a filter, or is a refusal.
    """
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise JudgeReplyError(f"the reply has no choices; it has: {', '.join(map(str, list(reply)[:10])) or 'nothing'}")
    reason = choice.get("finish_reason")
    if reason == "length":
        raise JudgeReplyError("the reply was cut at its length limit; raise max_tokens in sampling")
    if reason == "content_filter":
        raise JudgeReplyError("the reply was cut by the server's content filter")
    if message.get("refusal"):
        raise JudgeReplyError(f"the judge refused: {str(message['refusal'])[:200]!r}")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        raise JudgeReplyError(f"the reply's text is empty (finish_reason {reason!r})")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return CachedReply(text, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
