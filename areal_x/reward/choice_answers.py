"""Finds the option that a completion settles on. The search takes linear time at worst."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from areal_x.reward.words import compatible_form

__all__ = ["Statement", "normalize_choice", "stated_choice"]

_MARKER = re.compile(
    r"""
      \\boxed\s?\{ | <answer>
    | \b(?:answer|choice|option)\b \s?
      (?: : | = | (?:is|was|should\ be|must\ be|would\ be|will\ be)\b (?:\ clearly|\ therefore|\ thus)? \s?:? )
    | \bI(?:\ would|'d|\ will|'ll)?\ (?:choose|pick|select|go\ with)\b
    | (?:答案|选项|选择)\s?(?:应该)?(?:是|为|选|:)\s?:? | [故应]选\s?:? | (?:因此|所以)选\s?:?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BEFORE_LETTER = (
    r"\s?(?:the\ )?(?:(?:correct\ )?(?:option|choice|letter|answer)\ ?(?:is\ )?[:\-]?\ ?)?"
    r"(?:\\boxed\ ?\{)?(?:\\(?:text|textbf|textit|mathrm|mathbf)\ ?\{)?\ ?"
)
_LETTER = re.compile(_BEFORE_LETTER + r"([(\[{\"'“‘]?)\ ?([A-Za-z])(?![A-Za-z0-9_])", re.IGNORECASE)
_NOT = re.compile(r"\s?(?:definitely |certainly |clearly )?(?:not|isn't|n't|不是|不)\b ?")
_VERDICT = re.compile(
    r"(?<![A-Za-z0-9_'])\(?([A-Z])\)? (?:is|must be|should be) (?:the |clearly |therefore )?"
    r"(?:only |most |best )?(?:correct|right|best|answer)\b"
)
_CLOSING = {"(": ")", "[": "]", "{": "}", '"': '"', "'": "'", "“": "”", "‘": "’"}
_AFTER_WORD_LETTER = re.compile(r" (?:because|since|as|which|with|due|based|given|and|or|is|but|not)\b")
_NO_OPTION = re.compile(r" ?(?:[-+*/^=>]|<(?!/))|['’][A-Za-z]")
_SECOND = re.compile(
    r"""
      [)\]}"'”’]{0,2}
      (?: \ ? (?: [,;]?\ ?[({]?\ ?(?:(?:or|and)\b|或者|或|和)\ ?[)}]? | [,;/&、|→⇒] | \\{2} ) \s{0,3}[(\[{]?\ ?
          ([A-Z])(?![\w'’-])(?!(?<=I)\ [a-z])
        | \ ?[(\[{]\ ?([A-Z])(?=\ ?[)\]},;/|]|\ (?:or|and)\b)
        | [ .]{0,2}\n\s{0,5}[(\[]?([A-Z])[)\].,]{0,2}\s{0,5}(?:\n|$)
        | \.\ ?([A-Z])(?=\.?\s{0,5}$|\.\ )
      )
    """,
    re.VERBOSE,
)
_QUESTION = re.compile(r"[)\]}\"'”’]{0,2} ?\?")
_ENDS = re.compile(r" ?[.!)\]}]*\s*(?:\n|$)")
_LONE_LETTER = re.compile(r"[\s(\[{]*([A-Za-z])[\s)\]}.!。]*")
_LISTED = re.compile(r"^\(?([A-Z])[).:] +\S", re.MULTILINE)
_TEXT_END = re.compile(r"\n|<|[.;!?。；！？](?=\s|$|[\u3400-\u9fff])")
_FINAL_LETTER = re.compile(
    r"\b(?:therefore|thus|hence|so|it is|it's|must be|should be),? (?:option |choice )?\(?([A-Z])\)?[\s.!]*$",
    re.IGNORECASE,
)
_TAIL, _TAIL_MARGIN = 4000, 100
_MAX_CHOICE_LENGTH = 1000
_MAX_STATEMENTS = 200
"""So many are looked at, from the last one on, lest a completion made of them takes seconds."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a completion settles on: a letter (in upper case), or the normalised text of an option."""

    letter: str | None = None
    text: str | None = None
    reason: str | None = None
    """Why there is neither: ``no_answer`` or ``several_answers``."""


def normalize_choice(text: str) -> str:
    """An option's text without case, widths, emphasis, dollars, the braces of a command, and what stands around it."""
    return re.sub(r"\s+", " ", _clean(text).casefold()).strip(" .,:;!?\"'()[]{}。，：；！？")


def _clean(text: str) -> str:
    text = compatible_form(text)
    text = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf)\s?(?=\{)|[*`$]", "", text)
    return re.sub(r"[^\S\n]+", " ", text)


def stated_choice(text: str, choices: Sequence[str]) -> Statement:
    """The last statement of an answer in ``text``.

    A statement is ``answer is C``, ``Answer: (C)``, ``C is correct``, a boxed or tagged answer, or their like, with a
    letter or with the whole text of one of ``choices``. Without one, a last line that is a letter or an option counts.
    An answer taken back (``the answer is not C``) does not count, nor do several letters at once.

    Args:
        text: the completion behind its thought.
        choices: normalised texts of the options.
    """
    if len(text) > _TAIL:
        # Most statements stand at the end. What the cut may have gone through is not looked at.
        statement = _last_statement(_clean(text[-_TAIL:]), choices, skip=_TAIL_MARGIN)
        if statement is not None:
            return statement
    text = _clean(text)
    return _last_statement(text, choices) or _last_line(text, choices)


def _last_statement(text: str, choices: Sequence[str], skip: int = 0) -> Statement | None:
    found = [(match.end(), "") for match in _MARKER.finditer(text) if match.start() >= skip]
    found += [(match.end(), match.group(1)) for match in _VERDICT.finditer(text) if match.start() >= skip]
    denied: set[str | None] = set()
    for end, letter in sorted(found, reverse=True)[:_MAX_STATEMENTS]:
        if letter:
            statement: Statement | None = Statement(letter)
        elif (negation := _NOT.match(text, end)) is not None:
            refused = _statement_at(text, negation.end(), choices)
            denied.add((refused.letter or refused.text) if refused is not None else None)
            continue
        else:
            statement = _statement_at(text, end, choices)
        if statement is not None and (statement.reason or (statement.letter or statement.text) not in denied):
            return statement
    return None


def _statement_at(text: str, start: int, choices: Sequence[str]) -> Statement | None:
    match = _LETTER.match(text, start)
    if match is not None:
        opening, letter = match.groups()
        rest = text[match.end() : match.end() + 40]
        if _QUESTION.match(rest):
            return None
        second = _SECOND.match(rest)
        if second is not None and second.group(second.lastindex or 0) != letter.upper():
            return Statement(reason="several_answers")
        if _is_option(opening, letter, rest):
            return Statement(letter.upper())
    rest = text[start : start + _MAX_CHOICE_LENGTH].lstrip()
    line = rest.split("\n", 1)[0]
    for part in (line, _TEXT_END.split(line, maxsplit=1)[0], _braced(rest)):
        part = normalize_choice(part)
        part = re.sub(r"^[a-z][).:] +", "", part) if part not in choices else part
        if part and part in choices:
            return Statement(text=part)
    return None


def _braced(text: str) -> str:
    """``text`` as far as the brace that closes what was open before it."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return text[:position]
    return ""


def _is_option(opening: str, letter: str, rest: str) -> bool:
    """Whether a single letter names an option, rather than being an article, a variable or the pronoun."""
    if opening:
        return rest.lstrip(" .").startswith(_CLOSING[opening]) or (opening == "{" and rest[:1] in ".):}")
    if _NO_OPTION.match(rest):
        return False
    if letter.islower():
        return _ENDS.match(rest) is not None
    return letter not in "AI" or not re.match(r" [A-Za-z]", rest) or _AFTER_WORD_LETTER.match(rest) is not None


def _last_line(text: str, choices: Sequence[str]) -> Statement:
    line = text.rstrip().rsplit("\n", 1)[-1]
    lone = _LONE_LETTER.fullmatch(line) if len(line) < 40 else None
    if lone is not None:
        return Statement(lone.group(1).upper())
    if len(line) <= _MAX_CHOICE_LENGTH:
        whole = normalize_choice(line)
        if whole and whole in choices:
            return Statement(text=whole)
        final = _FINAL_LETTER.search(line)
        if final is not None and not final.group(1).islower():
            return Statement(final.group(1))
        listed = _LISTED.findall(text)
        if len(listed) == 1 and _LISTED.match(line):
            return Statement(listed[0])
    return Statement(reason="no_answer")
