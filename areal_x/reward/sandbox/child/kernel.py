"""The system calls that isolation needs and Python lacks, through ctypes."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = [
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "KernelError",
    "NotIsolatedError",
    "detach",
    "drop_bounding_set",
    "drop_capabilities",
    "enter_pid_namespace",
    "fork",
    "mount",
    "pivot_root",
    "prctl",
    "unshare",
]

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18

_MNT_DETACH = 2
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}

_libc = ctypes.CDLL(None, use_errno=True)
_fork = ctypes.PyDLL(None).fork
_MACHINE = platform.machine()
_NO_CAPABILITIES = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()


class NotIsolatedError(Exception):
    """Programs cannot be isolated; ``call`` says what is missing."""

    def __init__(self, call: str, text: str) -> None:
        super().__init__(text)
        self.call = call


class KernelError(OSError):
    """The kernel refused; ``call`` says what was asked of it."""

    def __init__(self, call: str) -> None:
        number = ctypes.get_errno()
        super().__init__(number, f"{call}: {os.strerror(number)}")
        self.call = call


def unshare(flags: int, name: str) -> None:
    """Move this process (for PID namespaces: its next children) to new namespaces."""
    if _libc.unshare(flags) != 0:
        raise KernelError(f"unshare({name})")


def enter_pid_namespace(descriptor: int) -> None:
    """Have the next children be made in the PID namespace of ``descriptor``."""
    if _libc.setns(descriptor, CLONE_NEWPID) != 0:
        raise KernelError("setns(CLONE_NEWPID)")


def fork() -> int:
    """fork(2) of a process with one thread, without Python's hooks: they cost more than the call, and repair locks
    that other threads may hold and random states, which are the same in every run on purpose."""
    pid: int = _fork()
    if pid < 0:
        raise OSError("fork failed")
    return pid


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    kind_bytes = None if kind is None else kind.encode()
    if _libc.mount(source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode()) != 0:
        raise KernelError(f"mount({kind or 'bind'} on {target})")


def detach(target: str) -> None:
    """Unmount ``target`` and everything below it."""
    if _libc.umount2(target.encode(), _MNT_DETACH) != 0:
        raise KernelError(f"umount({target})")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root; the old one appears at ``put_old``."""
    if _libc.syscall(_PIVOT_ROOT[_MACHINE], new_root.encode(), put_old.encode()) != 0:
        raise KernelError("pivot_root")


def prctl(option: int, argument: int = 0, *more: int) -> int:
    """prctl(2); what it returns."""
    rest = [ctypes.c_ulong(value) for value in (*more, 0, 0, 0)][:3]
    result = int(_libc.prctl(option, ctypes.c_ulong(argument), *rest))
    if result < 0:
        raise KernelError(f"prctl({option}, {argument})")
    return result


def drop_bounding_set() -> None:
    """No program that this process executes can gain a capability any more; needs CAP_SETPCAP."""
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_READ, capability)
        except KernelError:
            return  # The last capability that this kernel knows lies behind.
        prctl(_PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    """Give up all capabilities for good."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if _libc.syscall(_CAPSET[_MACHINE], *_NO_CAPABILITIES) != 0:
        raise KernelError("capset")
