"""Finds the program in a completion."""

from __future__ import annotations

import re

from areal_x.reward.answers import after_thinking

__all__ = ["BLOCKS", "complete_program", "find_program"]

BLOCKS = ("python", "any", "none")
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n`]*\n", re.MULTILINE)
_END = re.compile(r"^[ \t]*```[ \t]*$", re.MULTILINE)
_PYTHON = {"python", "python3", "py"}


def find_program(completion: str, prompt: str = "", blocks: str = "python") -> str | None:
    """The last complete block of code behind any thought; None if there is none.

    Args:
        completion: the model's text.
        prompt: may have begun a thought.
        blocks: ``python``: one marked as Python; ``any``: one with any mark; ``none``: the whole text is the program.
    """
    text = after_thinking(completion, prompt)
    if text is None:
        return None
    if blocks == "none":
        return text if text.strip() else None
    found = None
    position = 0
    while (opening := _FENCE.search(text, position)) is not None:
        closing = _END.search(text, opening.end())
        if closing is None:
            break
        if (blocks == "any" or opening[1].lower() in _PYTHON) and closing.start() > opening.end():
            found = text[opening.end() : closing.start()]
        position = closing.end()
    return found if found is not None and found.strip() else None


def complete_program(program: str, prompt: str, entry_point: str) -> str:
    """``program``, with the prompt's code ahead of it if that begins the function ``entry_point`` or what it needs.

    HumanEval asks to go on writing a function, and its tests use other functions of the prompt.
    """
    head = f"def {entry_point}("
    if head not in prompt:
        return program
    stub = find_program(prompt, blocks="any") if "```" in prompt else prompt
    if stub is None or head not in stub:
        return program
    # A function that the program only goes on writing is one with the prompt; else the prompt's own stub comes first.
    return stub + program if head not in program else f"{stub}\n    pass\n\n{program}"
