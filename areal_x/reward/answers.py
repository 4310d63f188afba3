"""Finds the final answer in a completion, and compares numbers exactly. No parsing of code or expressions here.

All searches begin at the end of the text and take linear time at worst: a megabyte of text or thousands of unclosed
boxes cost milliseconds.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

__all__ = ["after_thinking", "last_boxed", "last_marked", "last_number", "parse_number", "without_open_thought"]

_THOUGHT_NAMES = ("think", "thinking", "thought", "reasoning")
_BRACKETED_THOUGHT = "THINK"
_THOUGHT_TAG = re.compile(
    rf"[<◁\[]\|?\s{{0,3}}(/?)\s{{0,3}}({'|'.join(_THOUGHT_NAMES)})\s{{0,3}}\|?[>▷\]]", re.IGNORECASE
)
"""``<think>``, ``</Thinking >``, ``<|think|>``, ``◁think▷``, ``[THINK]``; bounds on the blanks keep it linear."""
_LONGEST_TAG = 30
_BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s{}$]+)")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?:(?<![\w.)])[-+])?(?<![\d.])\\?\$?(?:{_DIGITS})(?:/\d+)?")
_WHOLE_NUMBER = re.compile(rf"[-+]?(?:{_DIGITS})(?:e[-+]?\d{{1,2}})?", re.IGNORECASE)
_PLAIN_FRACTION = re.compile(r"([-+]?)(\d+)/(\d+)")
_LATEX_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_UNIT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{[^{}0-9]*\}")
_NOISE = re.compile(r"\\[,!; ]|\\(?:left|right)\b")
_SIGNED_CURRENCY = re.compile(r"^([-+])[$\u20ac\u00a3]")
_AROUND = " \t\n*$~\u00b0\u20ac\u00a3"
_WORDS_AROUND = re.compile(rf"[A-Za-z\s'():-]*?([-+]?(?:{_DIGITS}))[%A-Za-z\s'()-]*")
_TAIL_WINDOWS = (256, 8192)
MAX_NUMBER_LENGTH = 128
"""Longer digit strings are not compared: exact arithmetic on a million digits takes seconds."""


def after_thinking(completion: str, prompt: str = "") -> str | None:
    """The text after the last ``</think>``; ``None`` inside an unfinished thought, which the prompt may have begun.

    The tags are ``think``, ``thinking``, ``thought`` and ``reasoning`` in any case, also as ``<|think|>`` and
    ``◁think▷``, and ``[THINK]``. A thought ends at the last tag of its own name.
    """
    tags = _thought_tags(completion)
    opened = _open_thought(prompt)
    thought = opened[1] if opened is not None else None
    begin = 0
    while tags or thought:
        name = thought or tags[0][0]
        ends = [end for other, closes, end in tags if closes and other == name]
        if not ends:
            return None
        begin, thought = ends[-1], None
        tags = [tag for tag in tags if tag[2] > begin]
    return completion[begin:]


def without_open_thought(prompt: str) -> str:
    """The prompt without the tag at its end that begins a thought, if it has one."""
    opened = _open_thought(prompt)
    return prompt if opened is None else prompt[: opened[0]]


def _open_thought(prompt: str) -> tuple[int, str] | None:
    """Where the tag at the end of the prompt begins, and its name; None if the prompt begins no thought."""
    stripped = prompt.rstrip()
    for match in _THOUGHT_TAG.finditer(stripped, max(0, len(stripped) - _LONGEST_TAG)):
        if match.end() == len(stripped) and _is_tag(match) and not match.group(1):
            return match.start(), match.group(2).lower()
    return None


def _thought_tags(text: str) -> list[tuple[str, bool, int]]:
    """The name of each tag, whether it closes, and where it ends."""
    tags = _THOUGHT_TAG.finditer(text)
    return [(tag.group(2).lower(), bool(tag.group(1)), tag.end()) for tag in tags if _is_tag(tag)]


def _is_tag(match: re.Match[str]) -> bool:
    # "[thought]" is prose, and so is "[Think]".
    return not match.group().startswith("[") or match.group(2) == _BRACKETED_THOUGHT


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}`` (or ``\boxed 7``); ``None`` if there is none."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    complete = _last_complete_box(text, start)
    if complete is None and text.find("\\boxed") < start:
        complete = _last_complete_box(text, 0)
    return complete


def _last_complete_box(text: str, start: int) -> str | None:
    open_braces: list[int] = []
    last: tuple[int, int] | None = None
    for match in _BOX_OR_BRACE.finditer(text, start):
        token = match.group()
        if token.startswith("\\boxed"):
            open_braces.append(match.end())
        elif token == "{":
            open_braces.append(-1)
        elif token == "}" and open_braces:
            begin = open_braces.pop()
            if begin >= 0 and (last is None or begin > last[0]):
                last = (begin, match.start())
    bare = _last_match(_BARE_BOX, text, start)
    if bare is not None and (last is None or bare.start() > last[0]):
        return bare.group(1).strip()
    return text[last[0] : last[1]].strip() if last else None


def _last_match(pattern: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
    matches = deque(pattern.finditer(text, start), maxlen=1)
    return matches[0] if matches else None


def last_marked(text: str) -> str | None:
    """What follows the last ``####`` on its line; ``None`` if nothing does."""
    start = text.rfind("####")
    if start < 0:
        return None
    return text[start + 4 :].lstrip(" \t").split("\n", 1)[0].strip() or None


def last_number(text: str) -> str | None:
    """The last number in running text, as written (sign, currency, digit commas, decimals, simple fraction)."""
    for window in (*_TAIL_WINDOWS, len(text)):
        start = max(0, len(text) - window)
        last = _last_match(_NUMBER, text, start)
        if start == 0 or (last is not None and last.start() > start + MAX_NUMBER_LENGTH):
            return last.group() if last else None
    return None


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of an answer that is one number, else ``None``.

    Understood: digit commas, currency, a percent sign (a unit: ``20%`` is 20, as GSM8K writes its answers), a trailing
    full stop, ``72.0``, ``7.2e1``, ``3/4``, ``\frac{3}{4}``, ``x = 72``, ``72\text{ clips}``, ``72 clips``.
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    text = text.strip()
    if not _WHOLE_NUMBER.fullmatch(text):
        text = _NOISE.sub("", _UNIT.sub("", text).replace("{,}", ",").replace("\\%", "%").replace("\\$", "$"))
        text = text.rsplit("=", 1)[-1].strip(_AROUND).rstrip("%. " + _AROUND)
        text = _SIGNED_CURRENCY.sub(r"\1", text)
    if _WHOLE_NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    fraction = _PLAIN_FRACTION.fullmatch(text) or _LATEX_FRACTION.fullmatch(text)
    if fraction:
        sign, top, bottom = fraction.groups()
        return Fraction(int(f"{sign}{top}"), int(bottom)) if int(bottom) else None
    words = _WORDS_AROUND.fullmatch(text)
    return Fraction(words.group(1).replace(",", "")) if words else None
