"""Isolation by bubblewrap, where it may make namespaces and this process may not.

Each member is a new interpreter, since bubblewrap leaves nobody the right to make namespaces for the next one. That is
the start of an interpreter for every run. Two things are less strict: programs may execute files that they wrote, and
the number of their files has no limit but the size of all.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .kernel import NotIsolatedError
from .member import NUM_FDS, limit_helper, work_below
from .root import PACKAGES
from .seccomp import Filter, compile_filter
from .works import WORKS

__all__ = ["Bubblewrap", "main"]

_INSIDE = "/sandbox"
_START = f"import sys; sys.path[:0] = [{_INSIDE!r}]; from child.bubblewrap import main; main(sys.argv[1])"
_OTHER_TASKS = 2
"""The first process of the namespace, and bubblewrap's own."""


class Bubblewrap:
    """How to start members by the program ``executable``.

    Raises:
        NotIsolatedError: it is too old to limit the size of a file system, or programs would be root.
    """

    def __init__(self, executable: str, paths: list[str], packages: Mapping[str, str]) -> None:
        if os.geteuid() == 0:
            raise NotIsolatedError("bubblewrap as root", "root cannot use bubblewrap: its processes have no limit")
        known = subprocess.run([executable, "--help"], capture_output=True, text=True, check=False)
        if "--size" not in known.stdout + known.stderr:
            raise NotIsolatedError("bubblewrap --size", "bubblewrap is older than version 0.8")
        self._words = [executable, "--unshare-all", "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv"]
        self._words += ["--cap-drop", "ALL", "--hostname", "sandbox", "--uid", "1000", "--gid", "1000"]
        binds = {path: path for path in paths} | {f"{PACKAGES}/{name}": path for name, path in packages.items()}
        binds[f"{_INSIDE}/child"] = str(Path(__file__).parent)
        for target, source in binds.items():
            self._words += ["--ro-bind", os.path.realpath(source), target]
        for name in ("lib", "lib64", "lib32", "libx32"):
            if os.path.islink(f"/{name}"):
                self._words += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        for name in ("null", "zero", "random", "urandom"):
            self._words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        for name, value in {"HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}.items():
            self._words += ["--setenv", name, value]

    def execute(self, member: dict[str, Any], fds: list[int], status_fd: int) -> None:
        """Replace this process by bubblewrap with a member in it."""
        for fd in (*fds, status_fd):
            if fd >= 0:
                os.set_inheritable(fd, True)
        order = {"limits": member["limits"], "work": member["work"], "fds": fds, "status_fd": status_fd}
        space = ["--size", str(member["limits"]["disk"]), "--tmpfs", "/tmp", "--symlink", "/tmp", "/dev/shm"]
        inside = [sys.executable, "-PsSB", "-Xutf8", "-c", _START, json.dumps(order)]
        os.execv(self._words[0], [*self._words, *space, "--remount-ro", "/", "--chdir", "/tmp", "--", *inside])


def main(text: str) -> None:
    """Be a member, inside bubblewrap."""
    order = json.loads(text)
    sys.path[:] = [path for path in sys.path if path != _INSIDE] + [PACKAGES]
    os.environ.pop("PYTHONHASHSEED")
    limit_helper()
    code = Filter(compile_filter(platform.machine()))
    assert len(order["fds"]) == NUM_FDS
    work_below(order["limits"], _OTHER_TASKS, code, order["fds"], order["status_fd"], WORKS[order["work"]])
