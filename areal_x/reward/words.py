"""Words of a text in any script: what overlap and repetition are counted in."""

from __future__ import annotations

import functools
import re
import string
import unicodedata

__all__ = ["answer_words", "compatible_form", "split_words"]

# Han (with 々〇), kana: scripts without blanks between words, where each character counts as a word.
_UNSPACED = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_SIGN_OR_POINT = re.compile(r"(?<!\S)-(?=\.?\d)|(?<=\d)\.(?=\d)")
_END_OF_SIGNS = 0x20000
"""No punctuation and no combining mark lies in the planes above: they hold Han characters, tags and private use."""
_LONGEST_RUN_OF_MARKS = 30
"""As in the Stream-Safe Text Format, UAX #15 section 13: normalising sorts a run, in quadratic time."""
_MINUS, _POINT = "\ue000", "\ue001"


def split_words(text: str) -> list[str]:
    """Split at blanks; a Chinese or Japanese character is a word of its own."""
    return _WORD.findall(text)


def compatible_form(text: str) -> str:
    """``text`` in NFKC, in linear time: of a run of combining marks only the first 30 are kept."""
    return text if text.isascii() else unicodedata.normalize("NFKC", _surplus_marks().sub("", text))


@functools.lru_cache(maxsize=1)
def _surplus_marks() -> re.Pattern[str]:
    marks = "".join(chr(code) for code in range(_END_OF_SIGNS) if unicodedata.combining(chr(code)))
    return re.compile(f"(?<=[{marks}]{{{_LONGEST_RUN_OF_MARKS}}})[{marks}]+")


def answer_words(text: str) -> list[str]:
    """The words of a short answer, ready to be compared: no case, punctuation or English articles.

    Widths and forms of characters are made the same (NFKC). The sign and the decimal point of a number stay.
    """
    text = compatible_form(text).casefold().replace("\u2212", "-")
    kept = _SIGN_OR_POINT.sub(lambda match: _MINUS if match.group() == "-" else _POINT, text)
    kept = kept.translate(_punctuation()).replace(_MINUS, "-").replace(_POINT, ".")
    return split_words(_ARTICLE.sub(" ", kept))


@functools.lru_cache(maxsize=1)
def _punctuation() -> dict[int, None]:
    """All punctuation of Unicode, and the other signs of ASCII, as what ``str.translate`` deletes."""
    signs = {ord(sign) for sign in string.punctuation}
    marks = (code for code in range(_END_OF_SIGNS) if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys(signs.union(marks))
