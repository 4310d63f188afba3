"""F1: the overlap of the words of a completion with those of a gold answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from areal_x.api.reward_records import RewardResult
from areal_x.reward.answers import after_thinking
from areal_x.reward.options import argument_signature, check_choice, check_column, gold_answer
from areal_x.reward.registry import register_reward
from areal_x.reward.slime_text import slime_f1
from areal_x.reward.words import answer_words

__all__ = ["F1Reward", "f1_score"]

_ALL_OR_NOTHING = (["yes"], ["no"], ["noanswer"])


@register_reward(
    "f1",
    datasets=("2wikimultihopqa", "hotpot_qa", "hotpotqa", "musique", "nq_open"),
    extracts="the completion without its thought; boxed_f1: the last \\boxed{}",
    returns="word overlap with the nearest gold answer, 0 to 1",
)
class F1Reward:
    """The F1 of SQuAD: 2 * shared words / (words of the answer + words of the gold answer).

    Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1. Case, punctuation
    and English articles do not count; a Chinese or Japanese character is a word. Of several gold answers the nearest
    counts. ``yes``, ``no`` and ``noanswer`` match as a whole or not at all. An unfinished thought gets 0.

    Args:
        compat: ``slime`` gives exactly slime's verdicts, quirks included.
        answer_key: the column of the gold answer, by default ``answer`` or ``label``: a text, a list of texts, or a
            mapping with such a list under ``text``. An empty text or list says that there is no answer: only an empty
            completion gets 1.
    """

    def __init__(self, compat: str | None = None, answer_key: str | None = None) -> None:
        check_choice("f1", "compat", compat, (None, "slime"))
        self.compat = compat
        if answer_key is not None:
            check_column("f1", "answer_key", answer_key)
        self.answer_key = answer_key
        self.__signature__ = argument_signature(answer_key, ("prompt",))

    def __call__(self, completions: str, prompt: str | None = None, **columns: Any) -> RewardResult:
        """Score one completion.

        Raises:
            ValueError: the item has no gold answer.
        """
        gold = gold_answer("f1", columns, self.answer_key)
        if self.compat == "slime":
            if not isinstance(gold, str):
                raise ValueError(f"the gold answer is {gold!r}; 'f1' with compat: slime needs a text")
            return RewardResult(slime_f1(completions, gold))
        golds = _gold_texts(gold)
        text = after_thinking(completions, prompt or "")
        if text is None:
            return RewardResult(0.0, metadata={"reason": "unfinished_think"})
        words = answer_words(text)
        return RewardResult(max(_overlap(words, answer_words(one)) for one in golds))


def f1_score(prediction: str, gold: str) -> float:
    """The F1 of two texts, 0 to 1; symmetric. Two texts without words are equal: 1."""
    return _overlap(answer_words(prediction), answer_words(gold))


def _overlap(words: list[str], gold: list[str]) -> float:
    if words == gold:
        return 1.0
    if words in _ALL_OR_NOTHING or gold in _ALL_OR_NOTHING:
        return 0.0
    shared = (Counter(words) & Counter(gold)).total()
    return 2 * shared / (len(words) + len(gold))


def _gold_texts(gold: Any) -> list[str]:
    texts = gold.get("text") if isinstance(gold, Mapping) else gold
    if isinstance(texts, str | int | float) and not isinstance(texts, bool):
        return [str(texts)]
    if not isinstance(texts, Iterable) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"the gold answer is {gold!r}; 'f1' needs a text or a list of texts")
    return list(texts) or [""]
