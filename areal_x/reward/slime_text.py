"""Exactly the verdicts of slime's text graders ``f1`` and ``gpqa``, quirks included, for ``compat: slime``.

What they get wrong is listed on the page of built-in rewards. One thing differs: blanks are collapsed before the
search for a letter, which changes no verdict but keeps the search linear in the length of the text.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["slime_f1", "slime_gpqa"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_ALL_OR_NOTHING = ("yes", "no", "noanswer")
_LETTER_PATTERNS = (
    re.compile(r"(?:answer|option|choice)\s?(?:is|:)?\s?([A-Z])", re.IGNORECASE),
    re.compile(r"([A-Z])\s?is\s?(?:the)?\s?correct", re.IGNORECASE),
    re.compile(r"final\s?(?:answer|option)\s?(?:is|:)?\s?([A-Z])", re.IGNORECASE),
)
_CAPITAL = re.compile(r"\b[A-Z]\b")


def slime_f1(response: str, label: str) -> float:
    """Word overlap as SQuAD counts it: no case, ASCII punctuation or articles; words are what blanks separate."""
    given, gold = _squad_text(response), _squad_text(label)
    if given != gold and (given in _ALL_OR_NOTHING or gold in _ALL_OR_NOTHING):
        return 0.0
    given_words, gold_words = given.split(), gold.split()
    shared = (Counter(given_words) & Counter(gold_words)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(given_words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def _squad_text(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def slime_gpqa(response: str, label: object, metadata: Mapping[str, Any]) -> float:
    """Compare the first letter that some pattern finds; without one, look for a gold text anywhere in the response.

    Args:
        response: the completion.
        label: a letter, an index, or the text of the gold choice.
        metadata: any of ``choices``, ``valid_letters``, ``correct_letter``, ``correct_answer``, ``answer_text``.
    """
    given_choices = metadata.get("choices")
    if isinstance(given_choices, Mapping):
        given_choices = given_choices.values()
    choices = [str(choice) for choice in given_choices] if given_choices is not None else []
    letters = [str(letter).upper() for letter in metadata.get("valid_letters") or ()]
    letters = letters or list(string.ascii_uppercase[: len(choices) or 10])
    gold = _gold_letter(label, metadata, choices, letters)
    text = response.rsplit("</think>", 1)[-1]
    found = _letter(" ".join(text.split()), set(letters))
    if found and gold:
        return float(found == gold)
    golds = [metadata.get("correct_answer"), metadata.get("answer_text"), label if isinstance(label, str) else None]
    if gold in letters[: len(choices)]:
        golds.append(choices[letters.index(gold)])
    targets = (_ascii_words(str(one).strip()) for one in golds if one)
    haystack = _ascii_words(text)
    if any(target and target in haystack for target in targets):
        return 1.0
    return float(bool(found) and isinstance(label, str) and found == label.strip().upper())


def _gold_letter(label: object, metadata: Mapping[str, Any], choices: list[str], letters: list[str]) -> str:
    named = metadata.get("correct_letter")
    gold = named.strip().upper() if isinstance(named, str) else ""
    if isinstance(label, int | float):
        index = int(label)
        return letters[index] if 0 <= index < len(letters) else gold
    if not isinstance(label, str) or gold:
        return gold
    label = label.strip()
    if len(label) == 1 and label.upper() in letters:
        return label.upper()
    same = [index for index, choice in enumerate(choices) if label and _ascii_words(choice) == _ascii_words(label)]
    return letters[same[0]] if same else ""


def _letter(text: str, letters: set[str]) -> str:
    for pattern in _LETTER_PATTERNS:
        match = pattern.search(text)
        if match is not None and match.group(1).upper() in letters:
            return match.group(1).upper()
    return next((letter for letter in reversed(_CAPITAL.findall(text)) if letter in letters), "")


def _ascii_words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
