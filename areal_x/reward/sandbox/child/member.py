"""One isolated member of a run: the first process of a PID namespace, which starts the work and reaps.

    runner ──fork──▶ member (process 1: private /tmp, unprivileged, limited, filtered) ──fork──▶ work (process 2)

When the work ends, the member ends, and with the first process of a PID namespace the kernel kills all others in it.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
from collections.abc import Callable
from typing import Any, NoReturn

from .kernel import (
    CLONE_NEWNS,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    drop_capabilities,
    fork,
    mount,
    prctl,
    unshare,
)
from .seccomp import Filter

__all__ = ["MAX_FDS", "NUM_FDS", "STATUS", "Identity", "become_member", "drop_user", "limit_helper", "work_below"]

STATUS = struct.Struct("=idq")
"""What a member reports of its work: wait status, CPU seconds, largest resident set of one process in KiB."""
MAX_FDS = 256
"""Descriptors that the runner may have open."""
NUM_FDS = 6
"""Descriptors that a work may have: 0-2 as usual, 3 its source, 4 its report, 5 the channel to the other member."""

_COMMON_LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_NOFILE: MAX_FDS,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: 256,
}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class Identity:
    """Who programs run as: ``drop`` says whether root has to become ``uid`` first (else a user namespace maps it)."""

    def __init__(self, uid: int, drop: bool, others: int) -> None:
        self.uid = uid
        self.drop = drop
        self.others = others
        """Tasks that the kernel counts for ``uid`` beside those of the work."""


def become_member(
    identity: Identity, limits: dict[str, int], code: Filter, fds: list[int], status_fd: int, work: Callable[[], Any]
) -> NoReturn:
    """Isolate this process, which the runner just forked into a new PID namespace, and do ``work`` in a child of it.

    Args:
        identity: the unprivileged user.
        limits: see ``areal_x.reward.sandbox.Limits``, in bytes, seconds and counts.
        code: the system call filter.
        fds: ``NUM_FDS`` descriptors that become 0 to 5; -1: none (0-2: as they are, the null device).
        status_fd: where a ``STATUS`` goes when the work has ended.
        work: called in the child; its end is the process's end.
    """
    unshare(CLONE_NEWNS, "CLONE_NEWNS")
    options = f"size={limits['disk']},nr_inodes={limits['files']},mode=700"
    if identity.drop:
        options += f",uid={identity.uid},gid={identity.uid}"
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    os.chdir("/tmp")
    if identity.drop:
        drop_user(identity.uid)
    work_below(limits, identity.others, code, fds, status_fd, work)


def drop_user(uid: int) -> None:
    """Become the user and group ``uid`` for good; needs CAP_SETUID and CAP_SETGID."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def work_below(
    limits: dict[str, int], others: int, code: Filter, fds: list[int], status_fd: int, work: Callable[[], Any]
) -> NoReturn:
    """Limit and filter this process, the first of its PID namespace, do ``work`` in a child of it, and reap."""
    drop_capabilities()
    _set_limits(limits, others)
    prctl(_PR_SET_DUMPABLE, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    poller = select.poll()
    poller.register(status_fd, 0)
    if poller.poll(0):
        os._exit(1)  # The runner died before it could be watched.
    code.install()
    child = fork()
    if child == 0:
        try:
            os.setsid()
            _arrange(fds)
            work()
        finally:
            os._exit(1)
    os.dup2(status_fd, 0)
    os.closerange(1, MAX_FDS)
    _reap(child)


def limit_helper() -> None:
    """The limits that are the same for every member; set once in the process that they are forked from."""
    for name, value in _COMMON_LIMITS.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def _set_limits(limits: dict[str, int], other_tasks: int) -> None:
    wanted = {
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_CPU: limits["cpu"],
        resource.RLIMIT_FSIZE: limits["file_size"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_NPROC: limits["processes"] + other_tasks,
        resource.RLIMIT_STACK: limits["stack"],
    }
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # The kernel warns at the soft limit of processor time and kills at the hard one.
        resource.setrlimit(name, (value, value + 1 if name == resource.RLIMIT_CPU and value != hard else value))


def _arrange(fds: list[int]) -> None:
    """Make ``fds``, whose numbers are ``NUM_FDS`` or more, the descriptors 0 to 5 and close everything else."""
    for place, fd in enumerate(fds):
        if fd >= 0:
            os.dup2(fd, place)
        elif place > 2:
            os.closerange(place, place + 1)
    os.closerange(NUM_FDS, MAX_FDS)


def _reap(child: int) -> NoReturn:
    """Wait for the work; whatever else ends meanwhile was left to this process and is collected, too."""
    while True:
        pid, status, usage = os.wait3(0)
        if pid == child:
            os.write(0, STATUS.pack(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss))
            os._exit(0)
