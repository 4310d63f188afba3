"""From the text of a judge's reply to its verdict, strictly: what is not plainly a verdict is an error.

A verdict is the whole reply or its end. Numbers and words elsewhere in it, such as those that the judge quotes from the
prompt, are never taken.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from areal_x.reward.judge.errors import JudgeReplyError, excerpt
from areal_x.reward.judge.json_reply import final_json

__all__ = ["ChoiceParser", "JsonParser", "NumberParser", "RegexParser", "ReplyParser", "Scale", "Verdict"]

_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_LABEL = r"(?:(?:final|overall|total)\s+)?(?:score|rating|grade|verdict|answer|winner)\s*[:=]\s*"
_OUT_OF = re.compile(
    rf"(?P<label>{_LABEL})?(?P<value>{_NUMBER})(?:\s*(?:/|out of)\s*(?P<of>{_NUMBER}))?\.?", re.IGNORECASE
)
_LABELLED = re.compile(rf"(?P<label>{_LABEL})?(?P<value>.*?)\.?", re.IGNORECASE)
_MARKDOWN = re.compile(r"[*_`#]+")
_REGEX_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict, with its reason where it gave one."""

    value: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """The numbers that a verdict may be."""

    low: float
    high: float

    def check(self, value: float, reply: str) -> float:
        """``value``, if it is on the scale.

        Raises:
            JudgeReplyError: it is not.
        """
        if not (math.isfinite(value) and self.low <= value <= self.high):
            raise JudgeReplyError(f"the score {value:g} is outside the scale {self}: {excerpt(reply)}")
        return value

    def share(self, value: float) -> float:
        """Where ``value`` lies on the scale, 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class ReplyParser(Protocol):
    """Reads verdicts of one form, and says how to ask for that form."""

    @property
    def instruction(self) -> str:
        """What the prompt says about the form of the reply; empty: nothing."""

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the reply, where it is JSON."""

    def parse(self, text: str) -> Verdict:
        """The verdict; raises ``JudgeReplyError`` where there is none."""


def last_line(text: str) -> str:
    """The last line that is not blank, without Markdown's marks."""
    lines = text.strip().splitlines()
    return _MARKDOWN.sub("", lines[-1]).strip() if lines else ""


def labelled_end(text: str, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """The match of the last line; without a label it must be the whole reply."""
    match = pattern.fullmatch(last_line(text))
    if match and (match["label"] or len(text.strip().splitlines()) == 1):
        return match
    return None


@dataclass(frozen=True, slots=True)
class NumberParser:
    """``Score: 7`` in the last line, or a number alone. ``7/10`` counts where the scale ends at 10."""

    scale: Scale
    schema: None = None

    @property
    def instruction(self) -> str:
        """See ``ReplyParser``."""
        return f'End with a line that reads "Score: N", where N is a number from {self.scale}.'

    def parse(self, text: str) -> Verdict:
        """See ``ReplyParser``."""
        match = labelled_end(text, _OUT_OF)
        if match is None:
            raise JudgeReplyError(f'the reply does not end with "Score: N": {excerpt(text)}')
        if match["of"] is not None and float(match["of"]) != self.scale.high:
            raise JudgeReplyError(f"the score is out of {match['of']}, the scale is {self.scale}: {excerpt(text)}")
        return Verdict(self.scale.check(float(match["value"]), text))


@dataclass(frozen=True, slots=True)
class ChoiceParser:
    """One of a few words: ``Verdict: correct`` in the last line, or the word alone; ``words`` maps it to its score."""

    words: Mapping[str, float]
    schema: None = None

    @property
    def instruction(self) -> str:
        """See ``ReplyParser``."""
        return f'End with a line that reads "Verdict: W", where W is one of: {", ".join(self.words)}.'

    def parse(self, text: str) -> Verdict:
        """See ``ReplyParser``."""
        match = labelled_end(text, _LABELLED)
        said = match["value"].strip(" \"'[]()").casefold() if match else ""
        for word, value in self.words.items():
            if word.casefold() == said:
                return Verdict(value)
        raise JudgeReplyError(f"the reply does not end with one of {', '.join(self.words)}: {excerpt(text)}")


@dataclass(frozen=True, slots=True)
class RegexParser:
    """A regular expression of the user's, whose first group is the number. All its matches must agree."""

    pattern: Any
    """Compiled by the package ``regex``, whose matching can be given a time limit."""
    scale: Scale
    instruction: str = ""
    schema: None = None

    def parse(self, text: str) -> Verdict:
        """See ``ReplyParser``."""
        try:
            found = {match.group(1) for match in self.pattern.finditer(text, timeout=_REGEX_SECONDS)}
        except TimeoutError as error:
            raise JudgeReplyError(f"pattern {self.pattern.pattern!r} took over {_REGEX_SECONDS} s") from error
        if len(found) != 1:
            what = "no match" if not found else f"{len(found)} matches that differ"
            raise JudgeReplyError(f"pattern {self.pattern.pattern!r} has {what} in {excerpt(text)}")
        (number,) = found
        if number is None or not re.fullmatch(_NUMBER, number):
            raise JudgeReplyError(f"pattern {self.pattern.pattern!r} found {number!r}, which is no number")
        return Verdict(self.scale.check(float(number), text))


@dataclass(frozen=True, slots=True)
class JsonParser:
    """A JSON object with the verdict under ``key``: a number on the scale, or one of ``words``."""

    key: str
    scale: Scale
    words: Mapping[str, float] | None = None

    @property
    def instruction(self) -> str:
        """See ``ReplyParser``."""
        what = f"one of {', '.join(map(json.dumps, self.words))}" if self.words else f"a number from {self.scale}"
        return (
            f'Answer with one JSON object and nothing else: "reason" is a sentence or two, then "{self.key}" is {what}.'
        )

    @property
    def schema(self) -> dict[str, Any] | None:
        """See ``ReplyParser``."""
        value = {"type": "string", "enum": list(self.words)} if self.words else {"type": "number"}
        properties = {"reason": {"type": "string"}, self.key: value}
        return {
            "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
        }  # fmt: skip

    def parse(self, text: str) -> Verdict:
        """See ``ReplyParser``."""
        found = final_json(text, self.key)
        value, reason = found[self.key], found.get("reason")
        reason = reason if isinstance(reason, str) else None
        if self.words is not None:
            if not isinstance(value, str) or value not in self.words:
                raise JudgeReplyError(f"{self.key!r} is {value!r}, not one of {', '.join(self.words)}: {excerpt(text)}")
            return Verdict(self.words[value], reason)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise JudgeReplyError(f"{self.key!r} is {value!r}, not a number: {excerpt(text)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        return Verdict(self.scale.check(number, text), reason)
