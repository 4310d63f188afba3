"""Reward functions that the benchmarks run in worker processes: good ones, and every kind of bad one."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from typing import Any

__all__ = ["BAD_KINDS", "HARMFUL_KINDS", "fork_bomb", "mixed", "second_difference", "trivial"]


def trivial(completions: str) -> float:
    """As little work as a reward can do."""
    return 1.0


def second_difference(prompt_ids: list[int], completion_ids: list[int]) -> float:
    """Looks at its arguments, but takes next to no time."""
    return float(prompt_ids[-1] + 2 * completion_ids[-1] - len(prompt_ids) - len(completion_ids))


def _endless_python() -> None:
    while True:
        pass


def _endless_c_integers() -> None:
    pow(7, 10**9)


def _endless_c_regex() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def _sleep() -> None:
    time.sleep(1e6)


def _stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    _sleep()


def _fork_bomb() -> None:
    while True:
        try:
            os.fork()
        except OSError:
            continue


def _allocate() -> None:
    blocks = []
    while True:
        blocks.append(bytearray(10 << 30))


def _segmentation_fault() -> None:
    ctypes.string_at(0)


def _exit() -> None:
    os._exit(3)


def _close_descriptors() -> None:
    os.closerange(0, 4096)


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _sleep()


def _print_a_gigabyte() -> float:
    line = "x" * (1 << 20) + "\n"
    for _ in range(1 << 10):
        sys.stdout.write(line)
    return 1.0


def _write_a_gigabyte() -> float:
    block = b"x" * (1 << 20)
    for _ in range(1 << 10):
        os.write(1, block)
    return 1.0


def _raise() -> None:
    raise ValueError("deliberate")


def _raise_system_exit() -> None:
    sys.exit(1)


def _unpicklable() -> Any:
    return lambda: 1.0


BAD_KINDS: dict[str, tuple[Any, str]] = {
    "endless loop in Python": (_endless_python, "timeout"),
    "endless loop in C (big integers)": (_endless_c_integers, "timeout"),
    "endless loop in C (regular expression)": (_endless_c_regex, "timeout"),
    "sleep": (_sleep, "timeout"),
    "stops itself": (_stop_itself, "timeout"),
    "fork bomb": (_fork_bomb, "timeout"),
    "10 GB allocation": (_allocate, "error"),
    "segmentation fault": (_segmentation_fault, "crash"),
    "os._exit": (_exit, "crash"),
    "closes its descriptors": (_close_descriptors, "crash"),
    "ignores SIGTERM": (_ignore_sigterm, "timeout"),
    "prints a gigabyte": (_print_a_gigabyte, "ok"),
    "writes a gigabyte to descriptor 1": (_write_a_gigabyte, "ok"),
    "raises": (_raise, "error"),
    "raises SystemExit": (_raise_system_exit, "error"),
    "returns what cannot be pickled": (_unpicklable, "error"),
    "returns None": (lambda: None, "not_applicable"),
    "returns NaN": (lambda: float("nan"), "error"),
    "returns infinity": (lambda: float("inf"), "error"),
    "returns a string": (lambda: "1.0", "error"),
    "returns a bool": (lambda: True, "error"),
    "returns a list": (lambda: [1.0, 2.0], "error"),
    "returns a dict without the key": (lambda: {"accuracy": 1.0}, "error"),
}
"""Name of each kind of misbehaviour, the function, and the status that its calls must end with."""

HARMFUL_KINDS = frozenset(
    kind
    for kind, (_, status) in BAD_KINDS.items()
    if status in ("timeout", "crash") or "10 GB" in kind or "gigabyte" in kind
)
"""Kinds that hang, crash or flood; the others raise or return what is no reward."""


def fork_bomb(prompt: str) -> None:
    """Forks as often as it can, for ever."""
    _fork_bomb()


def mixed(number: int, kind: str, completion_ids: list[int]) -> Any:
    """A good reward for ``kind=""``, whose value shows that it saw its own arguments; otherwise misbehaves."""
    if not kind:
        return float(number + sum(completion_ids))
    return BAD_KINDS[kind][0]()
