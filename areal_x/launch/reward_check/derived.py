"""Completions made from the data itself: the gold solution, and what must not score as it does."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

from areal_x.api.errors import DataError
from areal_x.launch.reward_check.options import CheckOptions
from areal_x.launch.reward_check.samples import GOLD_KEYS, CheckData, PromptTexts, Sample
from areal_x.reward.answers import last_boxed, last_marked

__all__ = ["KINDS", "derive_samples", "find_gold_key", "truncated_solution", "wrong_solution"]

KINDS = {
    "gold": "the gold solution",
    "wrong": "the gold solution, its final answer changed",
    "truncated": "the gold solution, cut off before its answer",
    "empty": "no text at all",
    "garbage": "no words and no digits",
    "echo": "the prompt once more",
    "leak": "no text, while the prompt ends with the gold solution",
}
"""Completions that are made for each item, and what each is. Only the first ought to be rewarded."""

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_LETTER = re.compile(r"\(?[A-Z]\)?\.?")
_GARBAGE = "{}[]()<>$#*^_|~%&;:!?\\/\u0000\u200f\u05d0\u4f60\U0001f9ee \n"


def find_gold_key(data: CheckData, options: CheckOptions) -> str | None:
    """The column of the gold solution, or None.

    Raises:
        DataError: the column that the options name does not exist.
    """
    if options.gold_key is not None:
        if options.gold_key not in data.columns:
            known = ", ".join(data.columns)
            raise DataError(f"{data.source}: no column {options.gold_key!r} for gold solutions, only {known}")
        return options.gold_key
    return next((key for key in GOLD_KEYS if key in data.columns and key != data.prompt_key), None)


def wrong_solution(gold: str, others: Sequence[str]) -> str | None:
    """The solution with a wrong final answer, as near to the right one as can be.

    Its last number plus one; for a single letter the next one; else another item's solution. None: there is no other.
    """
    numbers = list(_NUMBER.finditer(gold))
    if numbers:
        last = numbers[-1]
        value = Decimal(last.group().replace(",", "").rstrip(".")) + 1
        return f"{gold[: last.start()]}{value}{gold[last.end() :]}"
    if _LETTER.fullmatch(gold.strip()):
        letter = next(character for character in gold if character.isalpha())
        return gold.replace(letter, "B" if letter == "A" else "A")
    return next((other for other in others if other.strip().lower() != gold.strip().lower()), None)


def truncated_solution(gold: str) -> str | None:
    """The first half of a solution, or less where the final answer stands in it already. None: nothing is left."""
    numbers = _NUMBER.findall(gold)
    answer = numbers[-1] if numbers else gold.split()[-1] if gold.split() else gold
    half = gold[: len(gold) // 2]
    cut = half[: half.index(answer)] if answer in half else half
    return cut if cut.strip() else None


def derive_samples(data: CheckData, texts: PromptTexts, options: CheckOptions, *, is_group: bool) -> list[Sample]:
    """All kinds of completions of each item, item after item.

    ``is_group``: the completions of an item form one group with one prompt, so no ``leak``; ``group_size`` of them,
    from the first kind on and again.
    """
    gold_key = find_gold_key(data, options)
    golds = ["" if gold_key is None or row.get(gold_key) is None else str(row[gold_key]) for row in data.rows]
    samples: list[Sample] = []
    for item, row in enumerate(data.rows):
        prompt = texts.prompt(row)
        columns = {name: value for name, value in row.items() if name != data.prompt_key}
        others = [golds[(item + step) % len(golds)] for step in range(1, min(len(golds), 20))]
        made = list(_kinds(prompt, golds[item], others, options, item))
        if is_group:
            made = [entry for entry in made if entry[0] != "leak"]
            made = [made[place % len(made)] for place in range(options.group_size or len(made))]
        for kind, its_prompt, completion in made:
            expected = 1.0 if kind == "gold" else 0.0
            samples.append(Sample(item, kind, its_prompt, completion, columns, expected, truncated=kind == "truncated"))
    return samples


def _kinds(
    prompt: str, gold: str, others: Sequence[str], options: CheckOptions, item: int
) -> Iterator[tuple[str, str, str]]:
    """``(kind, prompt, completion)`` of one item."""

    def written(solution: str) -> str:
        final = last_marked(solution) or last_boxed(solution) or solution.strip()
        return options.gold_format.replace("{gold}", solution).replace("{answer}", final)

    if gold.strip():
        yield "gold", prompt, written(gold)
        wrong = wrong_solution(gold, others)
        if wrong is not None:
            yield "wrong", prompt, written(wrong)
        cut = truncated_solution(gold)
        if cut is not None:
            yield "truncated", prompt, cut
    yield "empty", prompt, ""
    generator = random.Random(f"{options.seed}-{item}")
    yield "garbage", prompt, "".join(generator.choices(_GARBAGE, k=120))
    yield "echo", prompt, prompt
    if gold.strip():
        yield "leak", f"{prompt}\n{written(gold)}\n", ""
