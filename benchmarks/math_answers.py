"""Answers of many kinds, each with golds that it should and should not equal: what the math grader is compared on."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["KINDS", "chain_of_thought", "pairs", "usual_pairs"]

KINDS: dict[str, list[str]] = {
    "integer": ["72", "-72", "0", "7", "1000", "1,000", "123456789", "071", "- 72", "+72"],
    "decimal": ["0.5", ".5", "72.0", "72.50", "3.14", "3.14159", "0.333333", "0.33", "1,000.5", "-0.25", "2.50"],
    "fraction": [
        r"\frac{1}{2}",
        r"\dfrac{1}{2}",
        r"\frac12",
        "1/2",
        "2/4",
        r"-\frac{3}{4}",
        r"\frac{-3}{4}",
        "1/3",
        "4/2",
    ],
    "mixed": [r"3\frac{1}{2}", "7/2", "3.5", r"1 \frac{1}{4}", r"\frac{5}{4}"],
    "root": [
        r"\sqrt{2}",
        r"\sqrt{8}",
        r"2\sqrt{2}",
        r"\frac{\sqrt{3}}{2}",
        r"\frac{1}{2}\sqrt{3}",
        r"\sqrt[3]{8}",
        "2",
    ],
    "pi": [r"\pi", r"2\pi", r"\frac{\pi}{2}", r"\frac{3\pi}{4}", "3.141593", r"0.5\pi", r"\pi^2"],
    "power": ["2^{10}", "1024", "2^3", "8", r"10^{-2}", "0.01", r"e^2", r"x^2"],
    "unit": [r"72\text{ cm}", "72 cm", r"72^\circ", r"72\text{ clips}", r"\$72", "72", "5 inches", "5"],
    "assignment": ["x=5", "x = 5", "y=5", "5", "n=5", r"x=\frac{10}{2}", "a = 5"],
    "interval": ["(1,2)", "[1,2]", "(1,2]", "[1,2)", "(1,3)", r"(-\infty,2]", r"(0,1)\cup(2,3)", r"[0,\infty)"],
    "tuple": ["(1,2,3)", "(1, 2, 3)", "(3,2,1)", "(1,2)", r"(\frac{1}{2},1)", "(0.5, 1)", "(1,2,4)"],
    "set": [
        r"\{1,2,3\}",
        r"\{3,2,1\}",
        "1,2,3",
        r"\{1,2\}",
        "1, 2",
        "2,1",
        "(1,2)",
        r"\{0.5,1\}",
        r"\{\frac{1}{2},1\}",
        "10,220",
        "1;2",
        r"\{1,1,2\}",
        r"\{1\}",
        "1",
        r"\emptyset",
    ],
    "matrix": [
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
        r"\begin{pmatrix}1&2\\3&5\end{pmatrix}",
    ],
    "polynomial": [
        "x^2+2x+1",
        "(x+1)^2",
        "x^2+1",
        "2x",
        "x+x",
        "x",
        "y",
        "x^2-1",
        "(x-1)(x+1)",
        "x^2 + 2x + 1",
        "-(1-x)(x+1)",
        r"\frac{1}{2}x",
        r"\frac{x}{2}",
        "0.5x",
        "xy",
        "yx",
        "x(x+1)",
        "x^2+x",
        "f(x)",
        "x-x+1",
        "1",
        "3m",
        "2 3",
        "x^{2}+1",
    ],
    "function": [r"\sin(x)", r"\cos(x)", r"\log_2(8)", "3", r"\ln(e)", "1", r"|x|", r"\binom{5}{2}", "10", "5!", "120"],
    "relation": [r"x\leq 5", r"5\geq x", r"x<5", r"x>5", r"x\ge 5", r"1<x<2", "y=2x+1", "2x+1=y"],
    "text": [r"\text{Tuesday}", "Tuesday", r"\text{yes}", r"\text{no}", r"\text{Yes}"],
    "choice": ["A", "B", "C", r"\text{A}", r"\text{(A)}", "(A)", r"\textbf{B}"],
    "complex": ["1+i", "2i", "i+1", "3+4i", "-i"],
    "nonsense": ["", "?", "unknown", "{", r"\frac{1}", "))((", "none of these", "x x x"],
}
_SENTENCE = (
    "so we now compute the value of each term and see that it is larger than before while the sum stays "
    "equal to the first one because x plus y grows with 3 and 12.5 but not with $a + b$ nor \\frac{1}{2} of it"
)


_USUAL_SHARES = {
    "integer": 60,
    "fraction": 12,
    "decimal": 5,
    "root": 5,
    "pi": 2,
    "unit": 4,
    "interval": 2,
    "tuple": 3,
    "polynomial": 3,
    "choice": 2,
    "text": 1,
    "matrix": 1,
}
"""Kinds of golds in a hundred, as in collections of competition problems, most of which ask for an integer."""


def chain_of_thought(num_bytes: int, seed: int = 0) -> str:
    """Running text with numbers and formulas in it, and without the words and marks that announce an answer."""
    source = random.Random(seed)
    words = _SENTENCE.split()
    lines: list[str] = []
    while sum(map(len, lines)) < num_bytes:
        lines.append(" ".join(source.choice(words) for _ in range(14)) + ".\n")
    return "".join(lines)[-num_bytes:]


def pairs() -> Iterator[tuple[str, str]]:
    """A gold and an answer: all of each kind with one another, and some across kinds."""
    source = random.Random(1)
    everything = [text for texts in KINDS.values() for text in texts]
    for texts in KINDS.values():
        for gold in texts:
            if gold.strip():
                yield from ((gold, answer) for answer in texts)
                yield from ((gold, source.choice(everything)) for _ in range(2))


def usual_pairs(number: int) -> list[tuple[str, str]]:
    """Golds of the usual kinds in their usual shares; half of the answers are the gold, half another of its kind."""
    source = random.Random(2)
    kinds = source.choices(list(_USUAL_SHARES), list(_USUAL_SHARES.values()), k=number)
    found = []
    for index, kind in enumerate(kinds):
        gold = str(source.randint(0, 9999)) if kind == "integer" else source.choice(KINDS[kind])
        other = str(source.randint(0, 9999)) if kind == "integer" else source.choice(KINDS[kind])
        found.append((gold, gold if index % 2 else other))
    return found
