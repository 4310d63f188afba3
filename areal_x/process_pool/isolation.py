"""What keeps a worker from hurting anyone: limits on memory and processes, and a kill that reaches all descendants.

What is guaranteed, on Linux:

* Each worker runs below a guardian process. Where a PID namespace may be made (root with CAP_SYS_ADMIN), the guardian
  is its first process: killing the guardian kills every descendant of the worker at once, whatever session or process
  group it moved to, and the guardian's exit means that none is left. Elsewhere the guardian is a subreaper and sweeps:
  it stops, then kills, every descendant until the kernel says that it has none.
* The number of a worker's processes and threads is bounded with ``RLIMIT_NPROC``. Root is exempt as long as its
  real user is root, so a worker of root gets a real user id of its own (the effective one stays root, files behave as
  before) and drops the two capabilities that lift the limit. Another user's worker is counted alone in a user namespace
  where that is allowed, otherwise its limit is the number of tasks that the user already has plus the bound.
* Address space is bounded with ``RLIMIT_AS``, counted above what the imported modules take. Core dumps are off.

This stops programs with bugs. It is no sandbox for hostile code.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct

__all__ = [
    "die_with_parent",
    "limit_worker",
    "new_pid_namespace",
    "own_pid_namespace",
    "set_process_name",
    "subreaper",
    "sweep",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CAP_SYS_ADMIN = 21
_CAP_SYS_RESOURCE = 24
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send ``signal_number`` to this process when its parent dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def subreaper() -> None:
    """Adopt every descendant whose parent dies."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_process_name(name: str) -> None:
    """The name that ``ps`` shows, 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def own_pid_namespace() -> int | None:
    """A descriptor of this process's PID namespace if new ones can be made from it and left again, else None."""
    if not hasattr(_libc, "setns"):
        return None
    try:
        descriptor = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if _libc.unshare(_CLONE_NEWPID) == 0 and _libc.setns(descriptor, _CLONE_NEWPID) == 0:
        return descriptor
    os.close(descriptor)
    return None


class new_pid_namespace:
    """Context in which the next ``os.fork`` makes the first process of a new PID namespace."""

    def __init__(self, own: int | None) -> None:
        self._own = own

    def __enter__(self) -> None:
        if self._own is not None and _libc.unshare(_CLONE_NEWPID) != 0:
            raise OSError(ctypes.get_errno(), "cannot make a PID namespace")

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            _libc.setns(self._own, _CLONE_NEWPID)


def limit_worker(memory_limit_bytes: int, process_limit: int) -> None:
    """Apply all limits to this process, a worker that has one thread and no children yet."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _address_space() + memory_limit_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _limit_processes(process_limit)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("700")
    except OSError:
        pass  # Only a preference: when the machine runs out of memory, a worker should go first.


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit_processes(process_limit: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _drop_capabilities()
        if not _take_real_uid():
            process_limit += _count_tasks(os.getuid())
    elif _libc.unshare(_CLONE_NEWUSER) == 0:
        for path, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{path}", "w") as file:
                file.write(text)
    else:
        process_limit += _count_tasks(uid)
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard != resource.RLIM_INFINITY:
        process_limit = min(process_limit, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (process_limit, process_limit))


def _drop_capabilities() -> None:
    for capability in (_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=II", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) != 0:
        return
    words = list(struct.unpack("=6I", data.raw))
    for index in range(3):
        words[index] &= ~(1 << _CAP_SYS_ADMIN | 1 << _CAP_SYS_RESOURCE)
    _libc.capset(header, struct.pack("=6I", *words))


def _take_real_uid() -> bool:
    """Give this process of root a real user id that no one else has, so that the kernel counts its tasks alone."""
    for real_uid in (0x70000000 + int.from_bytes(os.urandom(3)), 61184 + int.from_bytes(os.urandom(2)) % 4335):
        try:
            os.setresuid(real_uid, 0, 0)
        except OSError:
            continue
        return True
    return False


def _count_tasks(uid: int) -> int:
    count = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.stat(f"/proc/{entry}").st_uid == uid:
                count += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            continue  # It ended while we looked.
    return count


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue  # It ended while we looked.
        children.setdefault(parent, []).append(int(entry))
    found: set[int] = set()
    pending = [root]
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def sweep() -> None:
    """Kill every descendant of this subreaper and reap them; returns when the kernel says that there is none.

    They are stopped before they are killed, so that a process which forks cannot outrun the sweep: each pass leaves
    only processes forked during the pass, and a stopped process forks no more.
    """
    stopped: set[int] = set()
    while True:
        found = _descendants(os.getpid())
        for sent, pids in ((signal.SIGSTOP, found - stopped), (signal.SIGKILL, found if found <= stopped else set())):
            for pid in pids:
                try:
                    os.kill(pid, sent)
                except ProcessLookupError:
                    continue
        killed = found <= stopped
        stopped |= found
        if not killed:
            continue
        try:
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
