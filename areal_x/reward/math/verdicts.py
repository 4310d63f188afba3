"""Where the math rewards differ from the graders that they are named after: the data of the page on verdicts.

Each row is checked twice by the tests, with and without ``compat``, and shown on ``docs/*/rewards/verdicts.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VERDICTS", "VerdictRow", "verdict_table"]


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """One completion on which the verdicts differ.

    Args:
        reward: the registered name.
        compat: the library whose verdict is ``theirs``.
        gold: the gold answer.
        completion: what is graded.
        theirs: the value under ``compat``; None: it raises there.
        ours: the value without.
        why: the reason, in English and in Chinese.
    """

    reward: str
    compat: str
    gold: object
    completion: str
    theirs: float | None
    ours: float
    why: tuple[str, str]


_CORRECTION = ("the last box is the answer; a correction is not punished", "以最后一个框为准，改正答案不扣分")
_UNFINISHED = ("a thought that was not ended holds no answer", "没有结束的思考里没有答案")
_SEVERAL = ("several answers are none", "给出几个答案等于没有答案")
_DENIAL = ("a denial is no answer", "否定不是答案")
_LATEX_GOLD = ("a LaTeX gold is compared whole", "LaTeX 标准答案整体比较")
_GOLD_ZERO = ("a gold of 0 is a gold", "标准答案 0 也是答案")
_NO_THOUGHT = ("a model that does not think has an answer, too", "不思考的模型同样有答案")
_STOP = ("a full stop is no part of the answer", "句号不属于答案")
_VALUE = ("the values are equal", "数值相等")
_BOXED = ("the inner grader gets the mark that it searches for", "内层评分器会得到它要找的标记")

VERDICTS = (
    VerdictRow("math", "areal", "72", r"\boxed{70} no wait \boxed{72}", 0.0, 1.0, _CORRECTION),
    VerdictRow("math", "areal", "72", "<think> maybe 72", 1.0, 0.0, _UNFINISHED),
    VerdictRow("math", "areal", r"2\sqrt{3}", r"\boxed{2}", 1.0, 0.0, _LATEX_GOLD),
    VerdictRow("math", "areal", r"2\sqrt{3}", r"\boxed{2\sqrt{3}}", 0.0, 1.0, _LATEX_GOLD),
    VerdictRow("math", "areal", "72", r"\boxed{72.}", 0.0, 1.0, _STOP),
    VerdictRow("math", "areal", "20", r"\boxed{20\%}", 0.0, 1.0, ("a percent sign is a unit", "百分号视为单位")),
    VerdictRow("math", "areal", "1,2", r"\boxed{1,2}", 0.0, 1.0, ("a list is a list", "列表就是列表")),
    VerdictRow("math", "areal", "72", r"\boxed{\neq 72}", 1.0, 0.0, _DENIAL),
    VerdictRow("math", "areal", "72", "The answer is not 72.", 1.0, 0.0, _DENIAL),
    VerdictRow("math", "areal", "11", "The answer is 11 or 12 or 13", 1.0, 0.0, _SEVERAL),
    VerdictRow("gsm8k", "areal", "#### 11", r"\boxed{\neq 11}", 1.0, 0.0, _DENIAL),
    VerdictRow("gsm8k", "areal", "#### 72", r"\boxed{70} no wait \boxed{72}", 0.0, 1.0, _CORRECTION),
    VerdictRow("gsm8k", "areal", "#### 72", "<think> maybe 72", 1.0, 0.0, _UNFINISHED),
    VerdictRow("geometry3k", "areal", r"2 \sqrt { 221 }", r"[2\sqrt{221}]", 0.0, 1.0, _LATEX_GOLD),
    VerdictRow("geometry3k", "areal", r"2 \sqrt { 221 }", "[221]", 1.0, 0.0, _LATEX_GOLD),
    VerdictRow("geometry3k", "areal", r"\frac{3}{4}", "[4]", 1.0, 0.0, _LATEX_GOLD),
    VerdictRow("geometry3k", "areal", "5", r"\boxed{5} in 2 steps", 0.0, 1.0, ("a box is an answer", "框也是答案")),
    VerdictRow("geometry3k", "areal", "72", r"\boxed{\neq 72}", 1.0, 0.0, _DENIAL),
    VerdictRow("clevr_count_70k", "areal", "3", "[3.0]", 0.0, 1.0, _VALUE),
    VerdictRow("clevr_count_70k", "areal", "3", "[ 3 ]", 0.0, 1.0, ("blanks do not count", "空格不影响结果")),
    VerdictRow("clevr_count_70k", "areal", "3", r"\boxed{3}", 0.0, 1.0, ("a box is an answer", "框也是答案")),
    VerdictRow("clevr_count_70k", "areal", "3", "<think> [3]", 1.0, 0.0, _UNFINISHED),
    VerdictRow("math", "slime", 0, r"\boxed{0}", 0.0, 1.0, _GOLD_ZERO),
    VerdictRow("math", "slime", r"\frac{1}{2}", r"\boxed{2/4}", 0.0, 1.0, _VALUE),
    VerdictRow("math", "slime", "1024", r"\boxed{2^{10}}", 0.0, 1.0, _VALUE),
    VerdictRow("math", "slime", "5", r"\boxed{2+3}", 0.0, 1.0, _VALUE),
    VerdictRow("math", "slime", "5", r"\boxed{xyz=5}", 0.0, 1.0, ("an assignment is its right side", "赋值式取右边")),
    VerdictRow("math", "slime", "5", r"\boxed 5", 0.0, 1.0, ("a box needs no braces", "框不一定有花括号")),
    VerdictRow("math", "slime", "5", "The answer is 5.", 0.0, 1.0, ("an answer needs no box", "答案不一定在框里")),
    VerdictRow(
        "math", "slime", "5", r"\boxed{5} and \boxed{7", 0.0, 1.0, ("the last complete box", "取最后一个完整的框")
    ),
    VerdictRow("math", "slime", "5", r"<think> \boxed{5}", 1.0, 0.0, _UNFINISHED),
    VerdictRow("deepscaler", "slime", "5", r"So \boxed{5}.", 0.0, 1.0, _NO_THOUGHT),
    VerdictRow("deepscaler", "slime", "5", r"</think> <think> \boxed{5}", 1.0, 0.0, _UNFINISHED),
    VerdictRow("deepscaler", "slime", "2", r"</think> \boxed{4/2}", 0.0, 1.0, _VALUE),
    VerdictRow("deepscaler", "slime", "72", r"</think> \boxed{72 \text{ or } 73}", 1.0, 0.0, _SEVERAL),
    VerdictRow("dapo", "slime", "12", "Answer: 1,2", 1.0, -1.0, _SEVERAL),
    VerdictRow("dapo", "slime", "42", "Answer: 42.", -1.0, 1.0, _STOP),
    VerdictRow("dapo", "slime", "42", "**Answer: 42**", -1.0, 1.0, ("bold is no part of the answer", "加粗不属于答案")),
    VerdictRow("dapo", "slime", "42", "Answer: 42.0", -1.0, 1.0, _VALUE),
    VerdictRow("dapo", "slime", "42", "Answer: 042", -1.0, 1.0, _VALUE),
    VerdictRow("dapo", "slime", "42", r"\boxed{42}", -1.0, 1.0, ("a box is an answer", "框也是答案")),
    VerdictRow(
        "dapo", "slime", "42.7", "Answer: 42", 1.0, -1.0, ("the gold is not cut to an integer", "标准答案不取整")
    ),
    VerdictRow("dapo", "slime", r"\frac{1}{2}", "Answer: 1/2", None, 1.0, _LATEX_GOLD),
    VerdictRow("dapo", "slime", "42", "<think> Answer: 42", 1.0, -1.0, _UNFINISHED),
    VerdictRow("boxed_math", "slime", "5", r"\boxed{5}", 0.0, 1.0, _BOXED),
    VerdictRow("boxed_deepscaler", "slime", "5", r"</think> \boxed{5}", 0.0, 1.0, _BOXED),
    VerdictRow("boxed_dapo", "slime", "5", r"\boxed{5}", -1.0, 1.0, _BOXED),
)


def verdict_table(language: str) -> str:
    """The rows as a Markdown table, in ``en`` or ``zh``."""
    chinese = language == "zh"
    heads = ("奖励", "标准答案", "回答", "对方", "我们", "原因") if chinese else _HEADS
    rows = [heads, ("---",) * len(heads)]
    for row in VERDICTS:
        theirs = "error" if row.theirs is None else f"{row.theirs:g}"
        texts = (f"`{text}`".replace("|", "\\|") for text in (row.gold, row.completion))
        rows.append((f"`{row.reward}`", *texts, f"{row.compat}: {theirs}", f"{row.ours:g}", row.why[chinese]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


_HEADS = ("reward", "gold", "completion", "theirs", "ours", "why")
