"""New interpreters that find what this one finds."""

from __future__ import annotations

import os
import sys

__all__ = ["find_same_modules", "start_interpreter"]


def find_same_modules(program: str) -> str:
    """A program that first takes over this interpreter's path of modules: it must find this very package."""
    return f"import sys; sys.path[:] = {[os.path.abspath(entry) for entry in sys.path]!r}; {program}"


def start_interpreter(program: str, keep_open: int) -> int:
    """Run a program in a new interpreter that has this descriptor; its process id. Safe in every thread: it is no fork.

    Raises:
        OSError: no process could be made.
    """
    arguments = [sys.executable, "-c", find_same_modules(program)]
    return os.posix_spawn(
        sys.executable, arguments, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, keep_open, keep_open)]
    )
