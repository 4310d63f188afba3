"""slime's three math graders with exactly its verdicts; what reaches pylatexenc or SymPy runs in a bounded child."""

from __future__ import annotations

import functools
import re
from typing import Any

from areal_x.reward.math.bounded_child import Limits, run_bounded
from areal_x.reward.math.slime_strings import (
    boxed_content,
    dapo_form,
    hendrycks_form,
    is_integer_like,
    may_be_evaluated,
    split_elements,
    symbolic_form,
)

__all__ = ["grade_dapo", "grade_deepscaler", "grade_math", "grade_strings", "prepare"]

_UNREDUCED = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
_LONGEST_IN_PROCESS = 2000
_DAPO_ANSWER = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")
_TEXT_SIGNS = str.maketrans({"√": "sqrt", "π": "pi", "∞": "inf", "∪": "U", "·": "*", "×": "*"})


def grade_math(completion: str, label: Any, limits: Limits) -> bool:
    """slime's ``math``: the last box of the completion; a label that is empty or 0 is never right.

    Raises:
        LimitReached: it could not be decided within ``limits``.
    """
    if not label:
        return False
    gold: str | None = str(label)
    if gold is not None and "\\boxed" in gold:
        gold = boxed_content(gold)
    given = boxed_content(completion)
    return given is not None and grade_strings(given, gold, limits)


def grade_deepscaler(completion: str, label: Any, limits: Limits) -> bool:
    """slime's ``deepscaler``: the last box behind ``</think>`` or in the second part at ``###Response``; else wrong.

    Raises:
        LimitReached: it could not be decided within ``limits``.
        TypeError: a label of a kind that its assertion refuses.
    """
    if "</think>" in completion:
        solution = completion.split("</think>")[-1]
    elif "###Response" in completion:
        solution = completion.split("###Response")[1]
    else:
        return False
    given = boxed_content(solution)
    if given is None or label == "":
        return False
    if not isinstance(label, str | float | int):
        raise TypeError(f"deepscaler takes a label that is a text or a number, not a {type(label).__name__}")
    gold: str | None = str(label)
    if gold is not None and "\\boxed" in gold:
        gold = boxed_content(gold)
    return gold is not None and grade_strings(given, gold, limits)


def grade_dapo(completion: str, label: Any) -> tuple[bool, str]:
    """slime's ``dapo``: whether the last ``Answer:`` of the last 300 characters is the whole number, and what it is.

    Raises:
        ValueError: the label is not a number.
    """
    answers = _DAPO_ANSWER.findall(completion[-300:])
    given = dapo_form(answers[-1] if answers else "[INVALID]")
    return given == str(int(float(dapo_form(label)))), given


def grade_strings(given: str, gold: str | None, limits: Limits) -> bool:
    """Whether two answers have the same normal form, or SymPy says that they are equal, by slime's rules.

    Raises:
        LimitReached: it could not be decided within ``limits``.
    """
    if hendrycks_form(gold) == hendrycks_form(given):
        return True
    if gold is None:
        return False
    if "\\" in gold + given or len(gold) + len(given) > _LONGEST_IN_PROCESS:
        prepare()
        return bool(run_bounded(_grade_symbolic, (given, gold), limits))
    verdict, differences = _compare_forms(symbolic_form(gold, str), symbolic_form(given, str))
    if verdict is not None or not differences:
        return bool(verdict)
    prepare()
    return bool(run_bounded(_all_zero, (differences,), limits))


@functools.cache
def prepare() -> None:
    """Import what the child needs, and simplify a constant, so that all of it is warm."""
    import pylatexenc.latex2text
    import sympy.parsing.sympy_parser  # noqa: F401

    pylatexenc.latex2text.LatexNodes2Text().latex_to_text("\\frac{1}{2}\\sqrt{3}")
    _all_zero(["(2*x)-(x*2)"])


def _grade_symbolic(given: str, gold: str) -> bool:
    verdict, differences = _compare_forms(symbolic_form(gold, _latex_to_text), symbolic_form(given, _latex_to_text))
    return _all_zero(differences) if verdict is None else verdict


def _compare_forms(gold: str, given: str) -> tuple[bool | None, list[str]]:
    """A verdict, or the differences that all have to be zero for the answers to be equal."""
    if gold == given:
        return True, []
    if not given:
        return False, []
    golds, givens = split_elements(gold), split_elements(given)
    if len(golds) > 1 and (gold[0] != given[0] or gold[-1] != given[-1]):
        return False, []
    if len(golds) != len(givens):
        return False, []
    differences = []
    for wanted, element in zip(golds, givens, strict=True):
        if _UNREDUCED.search(wanted) and _UNREDUCED.search(element):
            if wanted != element:
                return False, []
        elif is_integer_like(wanted) != is_integer_like(element):
            return False, []
        else:
            difference = f"({wanted})-({element})"
            if not may_be_evaluated(difference):
                return False, []
            differences.append(difference)
    return None if differences else True, differences


def _latex_to_text(text: str) -> str:
    from pylatexenc.latex2text import LatexNodes2Text

    spaced = text.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac").replace("\\frac", " \\frac")
    try:
        converted = LatexNodes2Text().latex_to_text(spaced)
    except MemoryError:
        raise
    except Exception:  # The boundary to model text: whatever pylatexenc trips over leaves the text as it was.
        return text
    return str(converted).translate(_TEXT_SIGNS).strip()


def _all_zero(differences: list[str]) -> bool:
    return all(_is_zero(difference) for difference in differences)


def _is_zero(difference: str) -> bool:
    import sympy
    from sympy.parsing import sympy_parser

    public = {name: value for name, value in vars(sympy).items() if not name.startswith("_")}
    transformations = (*sympy_parser.standard_transformations, sympy_parser.implicit_multiplication_application)
    try:
        value = sympy_parser.parse_expr(
            difference.replace("^", "**"),
            local_dict={},
            global_dict={"__builtins__": {}, **public},
            transformations=transformations,
        )
        return bool(sympy.simplify(value) == 0)
    except MemoryError:
        raise
    except Exception:  # The boundary to model text: whatever SymPy trips over is not equal.
        return False
