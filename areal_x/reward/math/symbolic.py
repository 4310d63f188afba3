"""Math-Verify in a bounded child: its verdicts, decided within a time limit whatever the text is.

The module is light to import; ``prepare`` brings in SymPy and Math-Verify and parses a few constant expressions, so
that a child begins with a warm parser.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from areal_x.reward.math.bounded_child import Limits, run_bounded

__all__ = ["normalized", "prepare", "verify_answer", "verify_text"]

_WARM_UP = (
    r"-\frac{3}{4}+2\sqrt{5}-7.25",
    r"x^2+2x+1=y",
    r"(1,2]\cup[3,\infty)",
    r"\{1,2,3\}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    r"\sin(\pi/6)\cdot\log_{2}(8)\times e^{-x}",
    r"\text{Monday}",
    r"x\leq 5",
    r"12,345",
    r"n!+\binom{5}{2}+|x|",
)


@functools.cache
def prepare() -> None:
    """Import Math-Verify and warm its parser with constants; about a second, once in a process and its children."""
    from math_verify import parse, verify

    # It warns in each new process that its own time-outs, which need the main thread, are off. That is on purpose.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    for text in _WARM_UP:
        parsed = parse(f"\\boxed{{{text}}}", parsing_timeout=None)
        verify(parsed, parse(f"\\boxed{{{text}+1}}", parsing_timeout=None), timeout_seconds=None)


@functools.cache
def _normalization() -> Any:
    from dataclasses import replace

    from math_verify import LatexExtractionConfig

    return replace(LatexExtractionConfig().normalization_config, boxed="none")


@functools.lru_cache(maxsize=4096)
def normalized(answer: str) -> str:
    """What Math-Verify makes of the content of a box before it parses it: units, noise and variants removed."""
    prepare()
    from latex2sympy2_extended.math_normalization import normalize_latex

    return str(normalize_latex(answer.strip(), _normalization()))


def verify_answer(gold: str, answer: str, limits: Limits) -> bool:
    """Whether Math-Verify takes ``answer`` for ``gold``, each the content of a box.

    Raises:
        LimitReached: it could not be decided within ``limits``.
    """
    return verify_text(f"\\boxed{{{gold}}}", f"\\boxed{{{answer}}}", limits)


def verify_text(gold: str, text: str, limits: Limits, expressions_first: bool = False) -> bool:
    """Whether Math-Verify finds the answer of ``gold`` in ``text``, with its own search in both.

    Args:
        gold: the gold answer, or a text that it is in.
        text: the completion, or the part of it that holds the answer.
        limits: of the child that does it.
        expressions_first: plain expressions go before LaTeX where both are found at the same place, as AReaL asks it.

    Raises:
        LimitReached: it could not be decided within ``limits``.
    """
    prepare()
    return bool(run_bounded(_verify, (gold, text, expressions_first), limits))


def _verify(gold: str, text: str, expressions_first: bool) -> bool:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = [LatexExtractionConfig(), ExprExtractionConfig()]
    if expressions_first:
        targets.reverse()
    parsed_gold = parse(gold, targets, parsing_timeout=None)
    parsed_text = parse(text, targets, parsing_timeout=None)
    return bool(verify(parsed_gold, parsed_text, float_rounding=6, timeout_seconds=None))
