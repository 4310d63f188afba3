"""A server that is none: a tree of processes that behave badly, and what is left of it."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

LONGEST = 120.0
"""Seconds that anything here may take on a loaded machine."""

TREE = """
import os, signal, subprocess, sys, time
folder, depth = sys.argv[1], int(sys.argv[2])
if "deaf" in sys.argv[3:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if depth:
    # A session of its own, and a parent that is gone: no process group and no parent leads to it any more.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, __file__, folder, str(depth - 1), *sys.argv[3:]])
        os._exit(0)
    os.wait()
open(os.path.join(folder, str(os.getpid())), "w").close()
print("process", depth, "runs", flush=True)
time.sleep(600)
"""


def tree_command(folder: Path, depth: int, *manners: str) -> list[str]:
    """A process with ``depth`` descendants, each in a session of its own; all write their ids into ``folder``.

    ``manners``: ``deaf`` ignores SIGTERM.
    """
    folder.mkdir(exist_ok=True)
    script = folder.parent / "tree.py"
    script.write_text(textwrap.dedent(TREE))
    return [sys.executable, str(script), str(folder), str(depth), *manners]


def wait_for_tree(folder: Path, count: int) -> list[int]:
    """The process ids of a tree, once all are there."""
    until = time.monotonic() + LONGEST
    while len(found := [int(path.name) for path in folder.iterdir()]) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} processes started"
        time.sleep(0.02)
    return found


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int]) -> None:
    """Return once none of them runs."""
    until = time.monotonic() + LONGEST
    while alive := [pid for pid in pids if lives(pid)]:
        assert time.monotonic() < until, f"still alive: {alive}"
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """What a server gets."""
    return dict(os.environ)
