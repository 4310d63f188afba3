"""Rewards the shape of a completion, whatever its content."""

from __future__ import annotations

import re
from collections.abc import Sequence

from areal_x.api.errors import ConfigError
from areal_x.reward.answers import after_thinking, last_boxed, last_marked
from areal_x.reward.options import check_choice
from areal_x.reward.registry import register_reward

__all__ = ["FormatReward"]

_ANSWERS = {"marked": last_marked, "boxed": last_boxed}
_TAG = re.compile(r"[\w.:-]+")


@register_reward(
    "format",
    extracts="an answer line or box, tags in order, a regular expression",
    returns="1 if it is there, else 0",
    boxed_as=None,
)
class FormatReward:
    r"""1 if the completion has the wanted shape, else 0: an answer line or box, tags in order, a regular expression.

    Args:
        answer: ``marked`` (``#### x``) or ``boxed`` (``\boxed{x}``): the completion gives an answer in this form,
            outside of an unfinished thought. The default when nothing else is asked for is ``marked``.
        tags: each tag is opened and closed exactly once, one after the other, for example ``[think, answer]``.
        pattern: a regular expression found somewhere in the completion (``.`` matches new lines, too; anchor it with
            ``^`` and ``$`` to ask for the whole). It is the user's own code: one that backtracks without end ends at
            ``reward.timeout_seconds`` as the outcome ``timeout``.

    All that are asked for have to hold.
    """

    def __init__(
        self, answer: str | None = None, tags: Sequence[str] | None = None, pattern: str | None = None
    ) -> None:
        if answer is None and not tags and pattern is None:
            answer = "marked"
        check_choice("format", "answer", answer, (None, *_ANSWERS))
        if isinstance(tags, str) or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags or ()):
            raise ConfigError(f"tags={tags!r} of reward 'format' is not a list of names, for example [think, answer]")
        if len(set(tags or ())) < len(tags or ()):
            raise ConfigError(f"tags={tags!r} of reward 'format' names a tag twice; each is opened and closed once")
        self.answer = answer
        self.tags = [part for tag in tags or () for part in (f"<{tag}>", f"</{tag}>")]
        try:
            self.pattern = None if pattern is None else re.compile(pattern, re.DOTALL)
        except (re.error, TypeError) as error:
            raise ConfigError(f"pattern={pattern!r} of reward 'format' is not a regular expression: {error}") from error

    def __call__(self, completions: str, prompt: str = "") -> float:
        """Score one completion. A tag that the prompt ends with counts as the completion's own."""
        text = completions
        if self.tags and prompt.rstrip().endswith(self.tags[0]):
            text = self.tags[0] + text
        if not self._has_tags(text) or (self.pattern is not None and not self.pattern.search(completions)):
            return 0.0
        if self.answer is None:
            return 1.0
        final = after_thinking(completions, prompt)
        return 1.0 if final is not None and _ANSWERS[self.answer](final) else 0.0

    def _has_tags(self, text: str) -> bool:
        position = 0
        for tag in self.tags:
            found = text.find(tag, position)
            if found < 0 or text.count(tag) != 1:
                return False
            position = found + len(tag)
        return True
