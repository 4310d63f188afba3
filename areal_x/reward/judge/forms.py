"""From the options of a judge to the parser of its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from areal_x.api.errors import ConfigError
from areal_x.reward.judge.parsing import ChoiceParser, JsonParser, NumberParser, RegexParser, ReplyParser, Scale
from areal_x.reward.options import check_choice, check_number

__all__ = ["ParserName", "check_scale", "check_words", "make_parser", "make_winner_parser"]

ParserName = Literal["json", "number", "regex", "choice"]


def check_scale(scale: Any) -> Scale:
    """The scale of two numbers.

    Raises:
        ConfigError: they are no two numbers, the lower one first.
    """
    if isinstance(scale, str) or not isinstance(scale, Sequence) or len(scale) != 2:
        raise ConfigError(f"reward 'judge': scale={scale!r} is no pair of numbers, such as [0, 10]")
    low, high = (check_number("judge", "scale", value) for value in scale)
    if low >= high:
        raise ConfigError(f"reward 'judge': scale={list(scale)!r} must have its lower number first")
    return Scale(low, high)


def check_words(choices: Mapping[str, float] | None) -> dict[str, float]:
    """The words of verdicts with their scores.

    Raises:
        ConfigError: fewer than two, equal but for case, or scores that are no numbers or all the same.
    """
    if not isinstance(choices, Mapping) or len(choices) < 2:
        raise ConfigError(
            f"reward 'judge': choices={choices!r} must map two words at least, as in {{correct: 1, wrong: 0}}"
        )
    words = {}
    for word, value in choices.items():
        # YAML reads an unquoted yes or no as a truth value.
        if not isinstance(word, str) or not word.strip():
            raise ConfigError(f"reward 'judge': choices holds {word!r}, which is no word; put it in quotes")
        words[word] = check_number("judge", f"choices.{word}", value)
    if len({word.casefold() for word in words}) < len(words) or len(set(words.values())) < 2:
        raise ConfigError(f"reward 'judge': choices={words!r} must differ in their words and their scores")
    return words


def make_parser(
    parser: ParserName, scale: Scale, key: str, pattern: str | None, words: dict[str, float] | None
) -> ReplyParser:
    """The parser of single completions' scores.

    Raises:
        ConfigError: an option that the parser needs is missing, or one that it does not use is given.
    """
    check_choice("judge", "parser", parser, ("json", "number", "regex", "choice"))
    if (pattern is not None) != (parser == "regex"):
        raise ConfigError("reward 'judge': pattern goes with parser=regex, and only with it")
    if (words is not None and parser not in ("choice", "json")) or (words is None and parser == "choice"):
        raise ConfigError("reward 'judge': choices goes with parser=choice, which needs it, or parser=json")
    if parser == "json":
        return JsonParser(key, scale, words)
    if parser == "number":
        return NumberParser(scale)
    if parser == "choice":
        assert words is not None
        return ChoiceParser(words)
    return RegexParser(_compiled(pattern), scale)


def make_winner_parser(parser: ParserName, winners: dict[str, float]) -> ReplyParser:
    """The parser of comparisons' verdicts."""
    if parser == "json":
        return JsonParser("winner", Scale(0.0, 1.0), winners)
    return ChoiceParser(winners)


def _compiled(pattern: Any) -> Any:
    import regex

    try:
        compiled = regex.compile(pattern, regex.MULTILINE)
    except (regex.error, TypeError) as error:
        raise ConfigError(f"reward 'judge': pattern={pattern!r} is no regular expression: {error}") from error
    if compiled.groups < 1:
        raise ConfigError(
            f"reward 'judge': pattern={pattern!r} has no group around the number, as in 'Score: ([0-9]+)'"
        )
    return compiled
