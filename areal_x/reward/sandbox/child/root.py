"""The file system that programs see: a read-only memory file system with the interpreter and its libraries in it.

    /dev/{null,zero,random,urandom}   the devices themselves
    <the interpreter's own paths>     read-only
    /packages                         read-only, what the sandbox was told to offer
    /tmp, /dev/shm -> /tmp            private to each run and mounted by it (see ``member``)

There is no /proc, no /sys, no /etc and no home.
"""

from __future__ import annotations

import os
import sys
import sysconfig

from .kernel import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    detach,
    mount,
    pivot_root,
)

__all__ = ["PACKAGES", "enter_root", "interpreter_paths"]

PACKAGES = "/packages"
_DEVICES = ("null", "zero", "random", "urandom")
_LIBRARY_MODULES = ("bz2", "ctypes", "hashlib", "lzma", "sqlite3", "ssl", "zlib")
"""Modules whose shared libraries show where the system keeps them."""
_KEPT_FLAGS = {os.ST_NOEXEC: 8, os.ST_NOATIME: 1 << 10, os.ST_NODIRATIME: 1 << 11, os.ST_RELATIME: 1 << 21}
"""statvfs flag -> mount flag that a remount in a user namespace may not clear."""


def interpreter_paths() -> list[str]:
    """Directories and files that this interpreter needs; asked in a child, since finding out loads libraries."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for name in _LIBRARY_MODULES:
            try:
                __import__(name)
            except ImportError:
                continue  # An interpreter built without it.
        with open("/proc/self/maps") as file:
            mapped = {line.split(maxsplit=5)[5].strip() for line in file if line.count("/")}
        folders = {os.path.dirname(path) for path in mapped if ".so" in os.path.basename(path)}
        os.write(writer, "\n".join(folders).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        found = set(file.read().splitlines())
    os.waitpid(pid, 0)
    paths = sysconfig.get_paths()
    found |= {paths["stdlib"], paths["platstdlib"], sys.executable, os.path.realpath(sys.executable)}
    found |= {folder for folder in ("/usr/lib64",) if os.path.isdir(folder)}
    outermost: list[str] = []
    for path in sorted(found):
        if os.path.exists(path) and not any(path.startswith(other + "/") for other in outermost):
            outermost.append(path)
    return outermost


def enter_root(paths: list[str], packages: dict[str, str]) -> None:
    """Replace this process's root by the one described above.

    Args:
        paths: what ``interpreter_paths`` found; seen under the same names.
        packages: name below ``/packages`` -> file or directory.

    Raises:
        KernelError: a mount was refused.
    """
    sources = {path: path for path in paths} | {f"{PACKAGES}/{name}": path for name, path in packages.items()}
    binds = {target: f"/old{os.path.realpath(source)}" for target, source in sources.items()}
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    for folder in ("/tmp", "/dev", "/empty", PACKAGES):
        os.mkdir(folder)
    os.symlink("/tmp", "/dev/shm")
    for name in _DEVICES:
        _bind(f"/old/dev/{name}", f"/dev/{name}", MS_RDONLY | MS_NOSUID)
    for target, source in binds.items():
        _bind(source, target, MS_RDONLY | MS_NOSUID | MS_NODEV)
    _hide_packages()
    for name in ("lib", "lib64", "lib32", "libx32"):
        if os.path.islink(f"/old/{name}") and not os.path.lexists(f"/{name}"):
            os.symlink(os.readlink(f"/old/{name}"), f"/{name}")
    detach("/old")
    os.rmdir("/old")
    mount("none", "/", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _bind(source: str, target: str, flags: int) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w"):
            pass
    mount(source, target, None, MS_BIND)
    status = os.statvfs(target).f_flag
    kept = sum(flag for seen, flag in _KEPT_FLAGS.items() if status & seen)
    mount("none", target, None, MS_REMOUNT | MS_BIND | flags | kept)


def _hide_packages() -> None:
    """Packages that are installed in the interpreter itself are offered by name only, like all others."""
    stdlib = sysconfig.get_paths()["stdlib"]
    for name in ("site-packages", "dist-packages"):
        if os.path.isdir(f"{stdlib}/{name}"):
            mount("/empty", f"{stdlib}/{name}", None, MS_BIND)
