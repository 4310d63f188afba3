"""Finds the final answer in a completion from its end: the last box, the last ``####`` line, the last "answer is".

Math-Verify looks at the whole text with some forty regular expressions. Here one search from the end names the few
hundred characters that hold the answer, and only these are looked at further.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from areal_x.reward.answers import last_boxed, last_marked

__all__ = ["FoundAnswer", "find_answer", "find_gold"]

_MAX_JOINED = 5
_MAX_ANCHORS = 20
_SCAN = 50
"""Math-Verify looks for the answer at most this far behind the word."""
_REGION = 400
_LAST_RESORT = 20_000
_BETWEEN_LENGTH = 70
_BETWEEN_NOISE = re.compile(r"\\(?:quad|qquad|text|mathrm|left|right)\b|\\[ ,;!()\[\]]|[\s$.:~{}()\[\]=*]+")
_BETWEEN_WORD = re.compile(r"and|or|for|part|case|the|is|[,;]|[A-Za-z](?:_?\d+)?")
_CONNECTIVES = {"and", "or", ",", ";"}
_PERCENT = re.compile(r"(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*(?:\\?%|\\text\s*\{\s*percent\s*\}|percent|pct)")
_MATH = re.compile(r"[0-9$]|\\[(\[]|\\[dt]?frac")
_NUMBER = r"(-?(?:[0-9]{1,15}|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]{1,6})?)"
_MATH_ALONE = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\(([^\n]+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_MATH_AT_END = re.compile(rf"(?:\A|(?<![$)\]])[\s:])(?:{_MATH_ALONE.pattern})[.!\s]*\Z", re.DOTALL)
_JOINED_BEFORE = re.compile(r"(?:\$|\\\)|\\\])\s*(?:,?and|,?or|,)\s*\Z|\$\Z")
_PLAIN_ANCHOR = re.compile(
    rf"answer(?:\s+is)?:?\s*(?:\*\*)?\s?(?:{_MATH_ALONE.pattern}|\$?{_NUMBER})(?:\*\*)?\.?(?![0-9%])[^0-9=$\\%]*",
    re.IGNORECASE | re.DOTALL,
)
_PLAIN_END = re.compile(
    rf"(?:[A-Za-z*]\s?[,.:;!?]{{0,2}}\s\s?|=\s?|\A)\s*\$?{_NUMBER}(?:\.|\*\*)*"
    r"(?:\s+(?!p(?:er)?ce?n?t)[A-Za-z]+){0,3}[.!\s]*\Z"
)
_GROUPED_NUMBER = r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,15})(?![0-9])(?:\.[0-9]{1,6})?"
_BEFORE_NUMBER = r"answer(?:\s+(?:is|are|was))?:?\s*(?:\*\*)?\s?"
_DIVIDES = (
    r"(?:[;|&~<>]|\\[|&]|\\\\|\\text\{[^{}0-9]{0,12}\}"
    r"|\\(?:lor|vee|mid|cup|to|approx|sim|equiv|implies|iff|q?quad|newline|colon|leq?|geq?|neq?)(?![A-Za-z]))"
)
_SEVERAL = re.compile(
    rf"{_BEFORE_NUMBER}(\$?{_GROUPED_NUMBER}(?:"
    rf"(?:(?:\s[A-Za-z]+){{0,2}}?\s?(?:,?\s?or\s|{_DIVIDES})\s?\$?{_GROUPED_NUMBER})+"
    rf"|(?:\s?(?:,?\s?and\s|,)\s?\$?{_GROUPED_NUMBER})+(?=[.!*\s]*(?:\n|\Z))))",
    re.IGNORECASE,
)
_DENIED = re.compile(
    rf"answer\s*(?:is|are|was|can|could|must|should|may|does|do)?\s?"
    rf"(?:not|n['\u2019]t|cannot|never)\s(?:be\s|equal(?:\sto)?\s)?\s?[$*]{{0,2}}({_GROUPED_NUMBER})[$*]{{0,2}}",
    re.IGNORECASE,
)
_INSTEAD = re.compile(r"[\s,;.]{0,3}(?:but|rather|instead|it is|it's)\b", re.IGNORECASE)
_NOT_AT_END = re.compile(
    r"(?:\b(?:not|never|cannot be|not be)|n['\u2019]t|n['\u2019]t be|\u2260)\s?\$?\Z", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """Where an answer was found.

    Args:
        text: the content of a box, or a piece of text for Math-Verify to search.
        source: ``boxed``, ``marked``, ``answer`` (behind that word) or ``end`` (of the text).
        whole: ``text`` is the answer itself, and not a text that it is in.
        context: what Math-Verify is given where ``text`` has to be parsed; None: a box with ``text``, or ``text``.
    """

    text: str
    source: str
    whole: bool = True
    context: str | None = None

    @property
    def for_math_verify(self) -> str:
        """The text that Math-Verify finds this answer in."""
        if self.context is not None:
            return self.context
        return f"\\boxed{{{self.text}}}" if self.whole else self.text


def find_answer(text: str) -> FoundAnswer | None:
    """The last box, else the last ``####`` line, else what follows the last "answer", else the text's end."""
    boxed = _boxes(text)
    if boxed is not None:
        return FoundAnswer(_plain(boxed), "boxed")
    marked = last_marked(text)
    if marked is not None:
        return FoundAnswer(_plain(marked.strip("*").strip()), "marked")
    return _behind_anchor(text) or _at_end(text)


def find_gold(gold: str) -> FoundAnswer:
    """The answer that a gold column holds: an answer, a box, ``$...$`` around it, or a solution with it at the end.

    Raises:
        ValueError: it holds none.
    """
    text = gold.strip()
    if not text:
        raise ValueError("the gold answer is empty; a math reward needs one in the column 'answer'")
    if text.count("\\boxed") > 1 and len(text) <= _REGION:
        return FoundAnswer(text, "gold", whole=False)
    if "\\boxed" in text or "####" in text:
        found = find_answer(text)
        if found is None:
            raise ValueError(f"no answer was found in the gold {text[-100:]!r}; write the answer alone, or in a box")
        return found
    alone = _MATH_ALONE.fullmatch(text)
    if alone is not None:
        return FoundAnswer(_plain(_first_group(alone)), "gold", context=text)
    if "\n" in text or len(text) > _REGION:
        return _behind_anchor(text) or _at_end(text) or FoundAnswer(text, "gold", whole=False)
    # A number outside of mathematics stays what it is written as, 0.5 a decimal: a box would make it 1/2.
    context = text if re.fullmatch(_NUMBER, text) else None
    return FoundAnswer(_plain(text), "gold", whole="$" not in text.replace("\\$", ""), context=context)


def _boxes(text: str) -> str | None:
    """Content of the last complete box, and those before it that only a comma, "and" or "or" divides from it."""
    start = text.rfind("\\boxed")
    box = _box_at(text, start, len(text)) if start >= 0 else None
    if box is None:
        return last_boxed(text) if start >= 0 else None
    contents = [box[0]]
    while len(contents) < _MAX_JOINED:
        earlier = text.rfind("\\boxed", 0, start)
        if earlier < 0:
            break
        box = _box_at(text, earlier, start)
        if box is None or not _is_list(text[box[1] : start]):
            break
        if box[0] != contents[0]:
            contents.insert(0, box[0])
        start = earlier
    return ",".join(contents)


def _box_at(text: str, start: int, limit: int) -> tuple[str, int] | None:
    r"""Content and end of the ``\boxed{...}`` at ``start``, if it is complete before ``limit``."""
    opened = text.find("{", start, min(start + 10, limit))
    if opened < 0 or text[start + len("\\boxed") : opened].strip():
        return None
    depth = 0
    for position in range(opened, min(limit, opened + 10_000)):
        character = text[position]
        if character in "{}" and text[position - 1] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[opened + 1 : position].strip(), position + 1
    return None


def _is_list(between: str) -> bool:
    """Whether two boxes with this text between them are two answers, rather than an answer and its correction."""
    if len(between) > _BETWEEN_LENGTH:
        return False
    words = _BETWEEN_NOISE.sub(" ", between).replace(",", " , ").replace(";", " ; ").split()
    return bool(_CONNECTIVES.intersection(words)) and all(_BETWEEN_WORD.fullmatch(word) for word in words)


def _plain(answer: str) -> str:
    """The answer without a full stop at its end, and a number without its percent sign, which is a unit here."""
    answer = answer.strip()
    if answer.endswith(".") and not answer.endswith(".."):
        answer = answer[:-1].rstrip()
    percent = _PERCENT.fullmatch(answer)
    return percent.group(1) if percent is not None else answer


def _first_group(match: re.Match[str]) -> str:
    return str(next(group for group in match.groups() if group is not None)).strip()


def _behind_anchor(text: str) -> FoundAnswer | None:
    lowered = text.lower()
    if len(lowered) != len(text):  # A few letters become two: positions would not fit.
        lowered = text
    end = len(text)
    for _ in range(_MAX_ANCHORS):
        start = lowered.rfind("answer", 0, end)
        if start < 0:
            return None
        if _MATH.search(text, start, start + len("answer") + _SCAN + 10):
            region = text[start : start + _REGION]
            hedged = _hedged(region)
            if hedged is not None:
                return hedged
            plain = _PLAIN_ANCHOR.fullmatch(region)
            if plain is not None:
                return FoundAnswer(_plain(_first_group(plain)), "answer", context=region)
            return FoundAnswer(region, "answer", whole=False)
        end = start
    return None


def _hedged(region: str) -> FoundAnswer | None:
    """Several numbers behind "answer is", as the list that they are; a denied one, as a denial; else None."""
    several = _SEVERAL.match(region)
    if several is not None:
        return FoundAnswer(", ".join(re.findall(_GROUPED_NUMBER, several.group(1))), "answer")
    denied = _DENIED.match(region)
    if denied is None:
        return None
    instead = _INSTEAD.match(region, denied.end())
    return FoundAnswer(f"not {denied.group(1)}", "answer") if instead is None else _at_end(region[instead.end() :])


def _at_end(text: str) -> FoundAnswer | None:
    tail = text[-_REGION:]
    alone = _MATH_AT_END.search(tail)
    if alone is not None and not _JOINED_BEFORE.search(tail, 0, alone.start() + 1):
        return FoundAnswer(_plain(_first_group(alone)), "end", context=tail[alone.start() :].strip())
    plain = _PLAIN_END.search(tail)
    if plain is not None and (plain.start() > 0 or len(tail) == len(text)):
        denied = _NOT_AT_END.search(tail, 0, plain.start(1)) is not None
        return FoundAnswer(f"not {plain.group(1)}" if denied else plain.group(1), "end")
    for size in (_REGION, _LAST_RESORT):
        begin = max(0, len(text) - size)
        # A line is where inline mathematics begins anew.
        begin = 0 if begin == 0 else max(text.find("\n", begin - 1, len(text) - size // 2), begin)
        region = text[begin:]
        if _MATH.search(region):
            return FoundAnswer(region, "end", whole=False)
    return None
