"""Which processes are left of a call: a helper process that a function keeps from call to call is none.

A worker whose function left a process behind is replaced. A function that starts a helper once and uses it in many
calls says so with ``keep_child``; the helper has to end with the worker (``isolation.die_with_parent``).
"""

from __future__ import annotations

import os

__all__ = ["forget_child", "has_leftovers", "keep_child"]

_kept: set[int] = set()


def keep_child(pid: int) -> bool:
    """Let child ``pid`` of this process stay when a call ends; False if the kernel does not list children.

    After False the child has to be ended before the call returns. Say ``forget_child`` once it has ended.
    """
    if not os.path.exists("/proc/thread-self/children"):
        return False
    _kept.add(pid)
    return True


def forget_child(pid: int) -> None:
    """Undo ``keep_child``, for a child that has ended."""
    _kept.discard(pid)


def has_leftovers() -> bool:
    """Whether this process has a living child that it does not keep; children that have ended are reaped."""
    for pid in list(_kept):
        if _has_ended(pid):
            _kept.discard(pid)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return False
    # Ids are not compared: in a PID namespace those in /proc may be the ids of the namespace outside.
    return not _kept or _count_children() > len(_kept)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def _count_children() -> int:
    count = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children") as file:
                count += len(file.read().split())
        except FileNotFoundError:
            continue  # The thread has ended; its children have moved to another one.
    return count


os.register_at_fork(after_in_child=_kept.clear)
