"""Who programs run as, and the namespaces of the helper that starts them."""

from __future__ import annotations

import os
import random
import socket
import sys

from .kernel import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, prctl, unshare
from .member import Identity

__all__ = ["choose_identities", "enter_namespaces"]

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_CAP_SYS_ADMIN = 21
_HIGH_UIDS = range(0x7000_0000, 0x7800_0000)
_INSIDE_UID = 1000


def choose_identities() -> list[Identity]:
    """The users of the two members of a run.

    Root takes two user ids that nobody has, so that the kernel counts their processes alone. Everybody else, and a root
    that has no other id or may not make namespaces, keeps the own id, in a user namespace.
    """
    if os.geteuid() == 0 and _has_capability(_CAP_SYS_ADMIN):
        spare = _spare_uids()
        if len(spare) >= 2:
            first = random.SystemRandom().randrange(len(spare) // 2) * 2
            return [Identity(spare[first + place], True, others=1) for place in range(2)]
    # Counted together: the helper, and two processes of the other member beside the own first one.
    return [Identity(_INSIDE_UID, False, others=4) for _ in range(2)]


def _has_capability(number: int) -> bool:
    with open("/proc/self/status") as file:
        effective = next(line for line in file if line.startswith("CapEff:")).split()[1]
    return bool(int(effective, 16) >> number & 1)


def _spare_uids() -> range:
    """Ids of this user namespace that are most likely nobody's: high ones, else the upper half of the largest range."""
    with open("/proc/self/uid_map") as file:
        ranges = [range(int(first), int(first) + int(count)) for first, _, count in map(str.split, file)]
    if any(_HIGH_UIDS[0] in one and _HIGH_UIDS[-1] in one for one in ranges):
        return _HIGH_UIDS
    largest = max(ranges, key=len)
    return largest[max(len(largest) // 2, 1) :]


def enter_namespaces(identity: Identity, control: socket.socket) -> int:
    """Move this process to namespaces of its own and go on as the first process of a PID namespace.

    The process that calls stays behind and waits: its death, and that of the driver, ends everything.

    Returns:
        A descriptor of the PID namespace.

    Raises:
        KernelError: a namespace was refused.
    """
    uid, gid = os.geteuid(), os.getegid()
    if not identity.drop:
        unshare(CLONE_NEWUSER, "CLONE_NEWUSER")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{identity.uid} {uid} 1")
        _write("/proc/self/gid_map", f"{identity.uid} {gid} 1")
    unshare(CLONE_NEWPID, "CLONE_NEWPID")
    pid = os.fork()
    if pid:
        control.close()
        _, status = os.waitpid(pid, 0)
        sys.exit(abs(os.waitstatus_to_exitcode(status)))
    prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    unshare(CLONE_NEWNS, "CLONE_NEWNS")
    unshare(CLONE_NEWNET, "CLONE_NEWNET")
    unshare(CLONE_NEWIPC, "CLONE_NEWIPC")
    unshare(CLONE_NEWUTS, "CLONE_NEWUTS")
    return own


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
