"""The system call filter: a list of what is allowed, compiled to the kernel's packet filter language.

What is not on the list fails with ENOSYS, as on a kernel without it, so that the C library takes its older ways
(``clone3`` becomes ``clone``, whose flags can be read). No namespaces, mounts, tracing, keys, kernel modules, io_uring,
bpf, clocks, System V objects, message queues, memory files, watches; sockets between local processes only.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from .kernel import KernelError, prctl
from .syscalls import FILTERED, numbers

__all__ = ["MACHINES", "Filter", "compile_filter"]

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = frozenset(_AUDIT_ARCH)
"""Architectures with a table of system calls."""
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_FROM, _JUMP_SET, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24  # Offsets in struct seccomp_data, low halves.
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2

_CLONE_NAMESPACES = 0x7E020000
_AF_UNIX = 1
_PRCTL_OPTIONS = (1, 2, 3, 15, 16, 21, 23, 39, 0x53564D41)
"""Parent death signal, dumpable (read), name, and reading of seccomp, bounding set, no_new_privs; names of mappings."""
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _one_of(offset: int, values: tuple[int, ...], refusal: int) -> list[bytes]:
    code = [_instruction(_LOAD, offset)]
    for value in values:
        code += [_instruction(_JUMP_EQUAL, value, 0, 1), _instruction(_RETURN, _ALLOW)]
    return [*code, _instruction(_RETURN, _ERRNO | refusal)]


def _filtered_bodies() -> dict[str, list[bytes]]:
    return {
        "clone": [
            _instruction(_LOAD, _ARGUMENT_0),
            _instruction(_JUMP_SET, _CLONE_NAMESPACES, 0, 1),
            _instruction(_RETURN, _ERRNO | errno.EPERM),
            _instruction(_RETURN, _ALLOW),
        ],
        "ioctl": _one_of(_ARGUMENT_1, _IOCTLS, errno.ENOTTY),
        "prctl": _one_of(_ARGUMENT_0, _PRCTL_OPTIONS, errno.EPERM),
        "socket": _one_of(_ARGUMENT_0, (_AF_UNIX,), errno.EPERM),
        "socketpair": _one_of(_ARGUMENT_0, (_AF_UNIX,), errno.EPERM),
    }


def _rules(machine: str) -> list[tuple[int, int, list[bytes]]]:
    """Sorted and without overlaps: first number, last number, and what is done for them."""
    column = 0 if machine == "x86_64" else 1
    allow = [_instruction(_RETURN, _ALLOW)]
    rules = [(FILTERED[name][column], FILTERED[name][column], body) for name, body in _filtered_bodies().items()]
    for number in numbers(machine):
        if rules[-1][1] == number - 1 and rules[-1][2] is allow:
            rules[-1] = (rules[-1][0], number, allow)
        else:
            rules.append((number, number, allow))
    return sorted(rules, key=lambda rule: rule[0])


def _tree(rules: list[tuple[int, int, list[bytes]]]) -> list[bytes]:
    """A binary search: installing a filter makes the kernel try it for each number, so its depth is time per run."""
    if len(rules) == 1:
        first, last, body = rules[0]
        refuse = [_instruction(_RETURN, _ERRNO | errno.ENOSYS)]
        checks = [_instruction(_JUMP_FROM, first, 0, 1 + len(body)), _instruction(_JUMP_ABOVE, last, len(body), 0)]
        return [*checks, *body, *refuse]
    middle = len(rules) // 2
    left, right = _tree(rules[:middle]), _tree(rules[middle:])
    return [_instruction(_JUMP_FROM, rules[middle][0], len(left), 0), *left, *right]


def compile_filter(machine: str) -> bytes:
    """The filter's instructions (8 bytes each) for ``machine``; a program of another architecture is killed.

    Raises:
        KeyError: no table for this architecture.
    """
    code = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    return b"".join(code + _tree(_rules(machine)))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class Filter:
    """A compiled filter, ready to be installed in this process or one forked from it."""

    def __init__(self, code: bytes) -> None:
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // 8, ctypes.addressof(self._code))

    def install(self) -> None:
        """Filter the calls of this process and all that it starts, for good.

        Raises:
            KernelError: the kernel has no seccomp filters.
        """
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        try:
            prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(self._program))
        except KernelError as error:
            error.call = "prctl(PR_SET_SECCOMP)"
            raise
