"""The GSM8K reward: is the completion's final answer the number behind ``####`` in the ``answer`` column?"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from areal_x.api.reward_api import RewardResult
from areal_x.reward.answers import after_thinking, last_boxed, last_marked, last_number, parse_number
from areal_x.reward.hedges import denies, names_several
from areal_x.reward.latex_answers import equal_latex, refusal
from areal_x.reward.math.bounded_child import LimitReached, Limits
from areal_x.reward.math.symbolic import verify_text
from areal_x.reward.options import check_choice
from areal_x.reward.registry import IN_A_BOX, register_reward

__all__ = ["gsm8k"]


@register_reward(
    "gsm8k",
    datasets=["gsm8k"],
    extracts="the last \\boxed{}, else the last #### line, else the last number",
    returns="1 or 0",
    boxed_as=IN_A_BOX,
)
def gsm8k(
    completions: str,
    answer: object,
    prompt: str = "",
    *,
    compat: str | None = None,
    limit_value: float = 0.0,
    time_limit: float = 5.0,
) -> RewardResult:
    r"""1 if the last ``\boxed{}``, else the last ``####`` line, else the last number equals the gold answer; else 0.

    Numbers are compared exactly; only an answer or a gold in LaTeX goes to Math-Verify. Inside a thought that was not
    ended (``<think>`` without ``</think>``) nothing counts. ``limit_value`` is the verdict on an answer that is too
    large to be checked or takes longer than ``time_limit`` seconds; ``metadata`` says where the answer was found and
    why it was refused. ``compat="areal"`` gives AReaL's verdicts: Math-Verify searches the whole completion and the
    whole gold.

    Raises:
        ValueError: the ``answer`` column holds no answer.
    """
    check_choice("gsm8k", "compat", compat, (None, "areal"))
    if compat == "areal":
        try:
            return RewardResult(
                float(verify_text(str(answer), completions, Limits(time_limit), expressions_first=True))
            )
        except LimitReached as limit:
            return RewardResult(limit_value, metadata={"reason": limit.reason})
    gold_text, gold = _gold(str(answer))
    text = after_thinking(completions, prompt)
    if text is None:
        return RewardResult(0.0, metadata={"reason": "unfinished_think"})
    source, found = _extract(text)
    if found is None:
        return RewardResult(0.0, metadata={"reason": "no_answer"})
    metadata = {"answer": found[:200], "source": source}
    if denies(found, gold_text):
        return RewardResult(0.0, metadata={**metadata, "reason": "denied"})
    number = parse_number(found)
    if number is not None and gold is not None:
        return RewardResult(float(number == gold), metadata=metadata)
    reason = refusal(found) or refusal(gold_text)
    if reason is not None:
        return RewardResult(limit_value, metadata={**metadata, "reason": reason})
    if names_several(found, gold_text):
        return RewardResult(0.0, metadata={**metadata, "reason": "several_answers"})
    try:
        return RewardResult(float(equal_latex(gold_text, found, Limits(time_limit))), metadata=metadata)
    except LimitReached as limit:
        return RewardResult(limit_value, metadata={**metadata, "reason": limit.reason})


def _extract(text: str) -> tuple[str, str | None]:
    boxed = last_boxed(text)
    if boxed is not None:
        return "boxed", boxed
    marked = last_marked(text)
    if marked is not None:
        return "marked", marked
    return "number", last_number(text)


@lru_cache(maxsize=4096)
def _gold(answer: str) -> tuple[str, Fraction | None]:
    text = last_marked(answer) or last_boxed(answer) or answer.strip()
    if not text:
        raise ValueError("the answer column is empty; the gsm8k reward needs a gold answer, as in '... #### 72'")
    return text, parse_number(text)
