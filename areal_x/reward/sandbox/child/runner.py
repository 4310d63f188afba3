"""The sandbox's helper process: isolates itself once, then forks an isolated member (or two) for each order.

    driver ──order + descriptors──▶ runner ──fork──▶ member ──fork──▶ program or checker
           ◀──how it ended────────         ◀──status──

It passes descriptors on and reads none of them, so no program, input, output or test ever lies in the memory that later
programs are forked from. It waits for: an order; then the first of: the status of the work, the deadline, word from the
driver (a cancellation, or its end). It is unblocked by the driver's message or by the death of a member.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import json
import os
import platform
import random
import select
import signal
import socket
import sys
import time
from typing import Any

from .bubblewrap import Bubblewrap
from .identity import choose_identities, enter_namespaces
from .kernel import CLONE_NEWPID, KernelError, NotIsolatedError, drop_bounding_set, enter_pid_namespace, fork, unshare
from .member import NUM_FDS, STATUS, Identity, become_member, limit_helper
from .root import PACKAGES, enter_root, interpreter_paths
from .seccomp import MACHINES, Filter, compile_filter
from .works import WORKS

__all__ = ["main"]

_MAX_MESSAGE = 1 << 17
_WARM = (
    *(
        "array",
        "bisect",
        "calendar",
        "cmath",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
    ),
    *("enum", "fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator", "queue", "random"),
    *("re", "statistics", "string", "textwrap", "threading", "traceback", "types", "typing"),
)
"""Modules that programs often import: imported once here, found ready in each fork."""


def main(control_fd: int) -> None:
    """Serve the driver at the other end of the socket ``control_fd`` until it goes."""
    control = socket.socket(fileno=fcntl.fcntl(control_fd, fcntl.F_DUPFD_CLOEXEC, NUM_FDS))
    os.close(control_fd)
    options = json.loads(control.recv(_MAX_MESSAGE))
    try:
        runner = _isolate(control, options)
    except (KernelError, NotIsolatedError) as error:
        control.send(json.dumps({"unavailable": error.call, "error": str(error)}).encode())
        sys.exit(1)
    control.send(json.dumps({"ready": runner.mode}).encode())
    runner.serve()


def _isolate(control: socket.socket, options: dict[str, Any]) -> _Runner:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_helper()
    null = os.open("/dev/null", os.O_RDWR)
    for place in (0, 1, 3, 4, 5):  # 2 is for this process's own errors.
        os.dup2(null, place)  # So that the numbers of all others are above those that programs get.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("900")  # When the machine runs out of memory, programs go first.
    machine = platform.machine()
    if machine not in MACHINES:
        raise NotIsolatedError("architecture", f"there is no table of system calls for {machine}")
    code = Filter(compile_filter(machine))
    paths = interpreter_paths()
    if "bubblewrap" in options:
        return _Runner(control, [], -1, code, Bubblewrap(options["bubblewrap"], paths, options["packages"]))
    identities = choose_identities()
    own = enter_namespaces(identities[0], control)
    enter_root(paths, options["packages"])
    drop_bounding_set()
    os.environ.clear()
    os.environ.update(HOME="/tmp", TMPDIR="/tmp", LANG="C.UTF-8", PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    socket.sethostname("sandbox")
    sys.path[:] = [path for path in sys.path if path.startswith(tuple(paths))] + [PACKAGES]
    for name in (*_WARM, *options["preload"]):
        importlib.import_module(name)
    random.seed(0)  # All runs begin with the same random numbers, or a reward would depend on which helper ran it.
    gc.collect()
    gc.freeze()
    return _Runner(control, identities, own, code)


class _Runner:
    def __init__(
        self,
        control: socket.socket,
        identities: list[Identity],
        own: int,
        code: Filter,
        bubblewrap: Bubblewrap | None = None,
    ) -> None:
        self.control = control
        self.bubblewrap = bubblewrap
        self.mode = "bubblewrap" if bubblewrap else "root" if identities[0].drop else "user"
        self.identities = identities
        self.own = own
        self.code = code

    def serve(self) -> None:
        """Answer orders, one after another."""
        while True:
            message, ancillary, _, _ = self.control.recvmsg(
                _MAX_MESSAGE, socket.CMSG_SPACE(4 * 64), socket.MSG_CMSG_CLOEXEC
            )
            fds = [fd for _, _, data in ancillary for fd in array.array("i", data)]
            if not message:
                sys.exit(0)
            order = json.loads(message)
            if "cancel" not in order:  # A cancellation that comes too late is for a run that has ended.
                reply = json.dumps(self._run(order, fds)).encode()
                try:
                    self.control.send(reply)
                except BrokenPipeError:
                    sys.exit(0)  # The driver went while the program ran.

    def _run(self, order: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        members = order["members"]
        channel = socket.socketpair() if len(members) == 2 else ()
        started = time.monotonic()
        running: list[tuple[int, int]] = []
        for place, member in enumerate(members):
            wanted = [fds[index] if index >= 0 else -1 for index in member["fds"]]
            if channel:
                wanted[NUM_FDS - 1] = channel[place].fileno()
            running.append(self._start(place, member, wanted))
        for end in channel:
            end.close()
        for fd in fds:
            os.close(fd)
        ended = self._wait(running[-1][1], started + order["seconds"])
        statuses = [self._finish(pid, fd) for pid, fd in running]
        return {"ended": ended, "members": statuses, "seconds": time.monotonic() - started}

    def _start(self, place: int, member: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        reader, writer = os.pipe()
        if self.bubblewrap is None:
            unshare(CLONE_NEWPID, "CLONE_NEWPID")
        pid = fork()
        if pid == 0:
            try:
                if self.bubblewrap is not None:
                    self.bubblewrap.execute(member, fds, writer)
                become_member(self.identities[place], member["limits"], self.code, fds, writer, WORKS[member["work"]])
            except OSError as error:
                os.write(writer, f"!{error}".encode())
            finally:
                os._exit(1)
        if self.bubblewrap is None:
            enter_pid_namespace(self.own)
        os.close(writer)
        return pid, reader

    def _wait(self, status_fd: int, deadline: float) -> str:
        poller = select.poll()
        poller.register(status_fd, select.POLLIN)
        poller.register(self.control, select.POLLIN)
        events = poller.poll(max(deadline - time.monotonic(), 0) * 1000)
        if not events:
            return "deadline"
        return "itself" if any(fd == status_fd for fd, _ in events) else "cancelled"

    def _finish(self, pid: int, status_fd: int) -> dict[str, Any]:
        """Kill what is left of a member; when its first process is gone, so is every other one of its namespace."""
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        data = os.read(status_fd, 4096)
        os.close(status_fd)
        if data.startswith(b"!"):
            return {"refused": data[1:].decode()}
        if not data and 0 <= code < 128:
            return {"refused": f"it ended with status {code} before it was isolated"}
        if len(data) < STATUS.size:
            return {}
        status, cpu_seconds, kilobytes = STATUS.unpack(data)
        return {"code": os.waitstatus_to_exitcode(status), "cpu_seconds": cpu_seconds, "memory": kilobytes << 10}
