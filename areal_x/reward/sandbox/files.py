"""Memory files: how text reaches a program and how its output comes back, without passing through the helper."""

from __future__ import annotations

import fcntl
import os

__all__ = ["new_output", "read_output", "sealed"]


def sealed(data: bytes) -> int:
    """A descriptor of a file with ``data`` that nobody can change; the caller closes it."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


def new_output() -> int:
    """A descriptor of an empty file; how large it may become is the writer's limit. The caller closes it."""
    return os.memfd_create("output", os.MFD_CLOEXEC)


def read_output(fd: int, limit: int) -> tuple[bytes, int]:
    """The first ``limit`` bytes and the size of the whole."""
    size = os.fstat(fd).st_size
    parts: list[bytes] = []
    offset = 0
    while offset < min(size, limit) and (part := os.pread(fd, limit - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts), size
