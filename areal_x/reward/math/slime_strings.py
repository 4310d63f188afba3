"""The string rules of slime's graders, step by step in its order, quirks included; nothing here parses mathematics.

Three normal forms: of Hendrycks' MATH (``hendrycks_form``), of the DeepScaleR grader that goes before SymPy
(``symbolic_form``), and of DAPO (``dapo_form``).
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = [
    "boxed_content",
    "dapo_form",
    "hendrycks_form",
    "is_integer_like",
    "may_be_evaluated",
    "split_elements",
    "symbolic_form",
]

_TEXT = re.compile(r"^\\text\{(.+?)\}$")
_UNITS = (
    "degree cm centimeter meter mile second minute hour day week month year foot feet inch yard".split()  # noqa: SIM905
)
_UNIT_PATTERNS = [re.compile(rf"{unit}(es)?(s)? *(\^[0-9]+)?") for unit in _UNITS]
_DIGIT_COMMA = re.compile(r"(\d)(,)(\d\d\d)($|\D)")
_BIG_POWER = re.compile(r"\^[0-9]+\^|\^[0-9][0-9]+|\^\{|\^\(")
_BRACKETS = "()[]"

_DAPO_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_DAPO_REMOVED = (
    *"square ways integers dollars mph inches hours km units \\ldots sue points feet minutes digits cents".split(),  # noqa: SIM905
    *"degrees cm gm pounds meters meals edges students childrentickets multiples \\text{s} \\text{.}".split(),  # noqa: SIM905
    *("\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}"),
    *("\\;", ",\\!", "{,}", '"', "\\dots", "<|im_end|>", "<|endoftext|>"),
)
_DAPO_PATTERNS = (
    (re.compile(r"(.*?)(\$)(.*?)(\$)(.*)"), r"$\3$"),
    (re.compile(r"(\\text\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\textbf\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\overline\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\boxed\{)(.*)(\})"), r"\2"),
    (re.compile(r"(frac)([^{])(.)"), r"frac{\2}{\3}"),
    (re.compile(r"(sqrt)([^{])"), r"sqrt{\2}"),
)


def boxed_content(text: str) -> str | None:
    r"""Verbatim content of the last ``\boxed{...}``; None if the last one is unbalanced or has no brace at once."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        if brace.group() == "{":
            depth += 1
            continue
        depth -= 1
        if depth == 0:
            whole = text[start : start + brace.end()]
            return whole[len("\\boxed{") : -1] if whole.startswith("\\boxed{") else None
    return None


def hendrycks_form(answer: str | None) -> str | None:
    """The normal form that slime calls ``mathd``; the stripped answer itself where a rule trips over it."""
    if answer is None:
        return None
    answer = answer.strip()
    wrapped = _TEXT.search(answer)
    if wrapped is not None:
        answer = wrapped.group(1).strip()
    try:
        return _hendrycks_rules(answer)
    except (IndexError, ValueError):
        return answer


def _hendrycks_rules(text: str) -> str:
    for old, new in (
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ):
        text = text.replace(old, new)
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")  # More than one unit is a ValueError: no normal form.
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _braced(text, "\\sqrt", _brace_root).replace(" ", "")
    text = _braced(text, "\\frac", _brace_fraction)
    if text == "0.5":
        text = "\\frac{1}{2}"
    return _slash_fraction(text)


def _braced(text: str, command: str, brace: Callable[[str], str | None]) -> str:
    head, *rest = text.split(command)
    pieces = [head]
    for piece in rest:
        braced = brace(piece)
        if braced is None:
            return text
        pieces.append(braced)
    return command.join(pieces)


def _brace_root(piece: str) -> str:
    return piece if piece[0] == "{" else f"{{{piece[0]}}}{piece[1:]}"


def _brace_fraction(piece: str) -> str | None:
    if piece[0] == "{":
        return piece
    if len(piece) < 2:
        return None
    return f"{{{piece[0]}}}{piece[1:]}" if piece[1] == "{" else f"{{{piece[0]}}}{{{piece[1]}}}{piece[2:]}"


def _slash_fraction(text: str) -> str:
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        top, bottom = int(parts[0]), int(parts[1])
    except ValueError:
        return text
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


def symbolic_form(answer: str, latex_to_text: Callable[[str], str]) -> str:
    """The normal form that slime compares, splits and hands to SymPy. Give it 2,000 characters, or a bounded child.

    Its time grows with the square of the length.

    Args:
        answer: the answer as given.
        latex_to_text: pylatexenc's conversion; what it raises leaves the text as it was, so it must not raise.
    """
    wrapped = _TEXT.search(answer)
    if wrapped is not None:
        answer = wrapped.group(1)
    for old, new in (
        ("\\%", "%"),
        ("\\$", "$"),
        ("$", ""),
        ("%", ""),
        (" or ", " , "),
        (" and ", " , "),
        ("million", "*10^6"),
        ("billion", "*10^9"),
        ("trillion", "*10^12"),
    ):
        answer = answer.replace(old, new)
    for unit in _UNIT_PATTERNS:
        answer = unit.sub("", answer)
    answer = re.sub(r"\^ *\\circ", "", answer)
    if answer and answer[0] == "{" and answer[-1] == "}":
        answer = answer[1:-1]
    answer = re.sub(r",\\! *", "", answer)
    number = _as_float(answer)
    if number is not None and _is_whole(number):
        answer = str(round(number))
    if "\\" in answer:
        answer = latex_to_text(answer)
    answer = re.sub("- *", "-", answer)
    answer = re.sub("([0-9]) +([0-9])", r"\1+\2", answer)
    answer = answer.replace(" ", "").replace("{", "").replace("}", "").lower()
    return str(int(float(answer.replace(",", "")))) if is_integer_like(answer) else answer


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_whole(number: float) -> bool:
    return abs(number) != float("inf") and number == number and abs(number - round(number)) <= 1e-7


def is_integer_like(text: str) -> bool:
    """Whether it reads as a whole number, with or without digit commas."""
    number = _as_float(_without_digit_commas(text))
    return number is not None and _is_whole(number)


def _without_digit_commas(text: str) -> str:
    while True:
        shorter = _DIGIT_COMMA.sub(r"\1\3\4", text)
        if shorter == text:
            return text
        text = shorter


def split_elements(text: str) -> list[str]:
    """The elements of a tuple or an interval; anything else is one element, and an empty text none."""
    text = _without_digit_commas(text)
    if not text:
        return []
    inner = text[1:-1]
    if len(text) > 2 and text[0] in _BRACKETS and text[-1] in _BRACKETS and not set(inner) & set(_BRACKETS):
        return [element.strip() for element in inner.split(",")]
    return [text]


def may_be_evaluated(expression: str) -> bool:
    """Whether slime gives an expression to SymPy: two letters at most, and no power of more than one digit."""
    letters = {character for character in expression.replace("sqrt", "").replace("frac", "") if character.isalpha()}
    return len(letters) <= 2 and not _BIG_POWER.search(expression)


def dapo_form(answer: object) -> str:
    """The normal form of DAPO's answers. Its time grows with the square of the length: give it 1,000 characters."""
    text = str(answer).split("=")[-1]
    for old, new in _DAPO_REPLACED:
        text = text.replace(old, new)
    for removed in _DAPO_REMOVED:
        text = text.replace(removed, "")
    for pattern, replacement in _DAPO_PATTERNS:
        text = pattern.sub(replacement, text)
    text = text.replace("$", "")
    if text.replace(",", "").isdigit():
        text = text.replace(",", "")
    return text.strip()
