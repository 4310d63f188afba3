"""Multiple choice: does the completion settle on the right option?"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from areal_x.api.reward_records import RewardResult
from areal_x.reward.answers import after_thinking
from areal_x.reward.choice_answers import normalize_choice, stated_choice
from areal_x.reward.options import argument_signature, check_choice, check_column
from areal_x.reward.registry import register_reward
from areal_x.reward.slime_text import slime_gpqa

__all__ = ["MultipleChoiceReward"]

_DEFAULT_NUM_LETTERS = 10


@register_reward(
    "multiple_choice",
    datasets=("gpqa", "gpqa-diamond", "gpqa_diamond", "mmlu", "mmlu-pro", "mmlu_pro"),
    extracts="the last answer stated: a letter or a whole option, boxed, tagged or in words",
    returns="1 or 0",
)
class MultipleChoiceReward:
    """1 if the last answer that the completion states is the right option, else 0.

    ``The answer is: C``, ``Answer: (C)``, ``C is correct``, a boxed or tagged ``C``, a last line ``C``, and the same
    with the whole text of the option. Naming several options, or the text somewhere in passing, earns nothing; nor
    does an unfinished thought.

    The options come from the column ``choices`` or from ``choices`` in the column ``metadata``: a list, a mapping of
    letters to texts, or a mapping with a list under ``text``. ``metadata`` may have ``valid_letters`` and
    ``correct_letter``, too. Without any, the letters A to J are valid.

    Args:
        compat: ``slime`` gives exactly the verdicts of slime's ``gpqa``, quirks included.
        answer_key: the column of the right answer, by default ``answer`` or ``label``: a letter, the index of the
            option, or its text.
        choices_key: the column of the options, where the data has one.
    """

    def __init__(self, compat: str | None = None, answer_key: str | None = None, choices_key: str = "choices") -> None:
        check_choice("multiple_choice", "compat", compat, (None, "slime"))
        self.compat = compat
        if answer_key is not None:
            check_column("multiple_choice", "answer_key", answer_key)
        check_column("multiple_choice", "choices_key", choices_key)
        self.answer_key = answer_key
        self.choices_key = choices_key
        self.__signature__ = argument_signature(answer_key, ("prompt", choices_key, "metadata"))

    def __call__(
        self, completions: str, prompt: str | None = None, metadata: Mapping[str, Any] | None = None, **columns: Any
    ) -> RewardResult:
        """Score one completion.

        Raises:
            ValueError: the item says no right answer, or one that is not among its options.
        """
        facts = dict(metadata) if isinstance(metadata, Mapping) else {}
        if columns.get(self.choices_key) is not None:
            facts["choices"] = columns[self.choices_key]
        keys = ("answer", "label") if self.answer_key is None else (self.answer_key,)
        answer = next((columns[key] for key in keys if columns.get(key) is not None), None)
        if self.compat == "slime":
            return RewardResult(slime_gpqa(completions, answer, facts))
        options = _texts(facts.get("choices"))
        choices = [normalize_choice(option) for option in options]
        letters = _letters(facts, len(options))
        letter, text = _gold(answer, facts, options, letters)
        thought_free = after_thinking(completions, prompt or "")
        if thought_free is None:
            return RewardResult(0.0, metadata={"reason": "unfinished_think"})
        stated = stated_choice(thought_free, choices or [text])
        if stated.reason is not None:
            return RewardResult(0.0, metadata={"reason": stated.reason})
        if stated.letter is not None:
            return RewardResult(float(stated.letter == letter), metadata={"answer": stated.letter})
        # Options that differ in case only (AA, Aa) are told apart by their letters alone.
        right = stated.text == text and choices.count(text) <= 1
        return RewardResult(float(right), metadata={"answer": str(stated.text)[:200]})


def _gold(answer: Any, facts: Mapping[str, Any], options: list[str], letters: list[str]) -> tuple[str | None, str]:
    """The right answer's letter (None: only its text is known) and normalised text (empty: only the letter is)."""
    letter = facts.get("correct_letter") or answer
    if isinstance(letter, str) and letter.strip().upper() in letters:
        index = letters.index(letter.strip().upper())
    elif not isinstance(answer, bool) and isinstance(answer, Integral) and 0 <= int(answer) < len(letters):
        index = int(answer)
    else:
        text = facts.get("correct_answer") if answer is None else answer
        same = [place for place, option in enumerate(options) if option == text]
        if isinstance(text, str) and not same:
            key = normalize_choice(text)
            if not options and key:
                return None, key
            same = [place for place, option in enumerate(options) if normalize_choice(option) == key]
        if len(same) != 1:
            shown = ", ".join(repr(option[:40]) for option in options) or f"{letters[0]} to {letters[-1]}"
            raise ValueError(
                f"the gold answer is {text!r}; 'multiple_choice' needs a letter, an index from 0 or the text of "
                f"exactly one option of: {shown}"
            )
        index = same[0]
    return letters[index], normalize_choice(options[index]) if index < len(options) else ""


def _texts(choices: Any) -> list[str]:
    if isinstance(choices, Mapping):
        choices = choices["text"] if isinstance(choices.get("text"), Iterable) else choices.values()
    if choices is None:
        return []
    if isinstance(choices, str) or not isinstance(choices, Iterable):
        raise ValueError(
            f"choices={choices!r}: 'multiple_choice' needs a list of texts, or a mapping of letters to texts"
        )
    return [str(choice) for choice in choices]


def _letters(facts: Mapping[str, Any], num_choices: int) -> list[str]:
    letters = [str(letter).strip().upper() for letter in facts.get("valid_letters") or ()]
    choices = facts.get("choices")
    if not letters and isinstance(choices, Mapping) and "text" not in choices:
        letters = [str(letter).strip().upper() for letter in choices]
    letters = letters or list(string.ascii_uppercase[: num_choices or _DEFAULT_NUM_LETTERS])
    if len(letters) < num_choices:
        raise ValueError(f"{num_choices} choices have only {len(letters)} letters: {', '.join(letters)}")
    return letters
