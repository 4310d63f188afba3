"""The process above one server: whatever happens to the driver, the server and all its descendants end.

A server starts further processes, some in sessions of their own, and none of them ends by itself when the driver is
killed. So the driver starts this small process, which starts the server in a session of its own and adopts every
descendant whose parent dies. It waits, without polling, for the first of

* the server ends by itself: what it left behind is killed;
* the driver says ``stop SECONDS``: SIGTERM to the server's process group, and after so long SIGKILL to everything;
* the driver ends or closes its end of the socket: SIGKILL to everything.

Then no descendant is left, and it says ``ended STATUS`` and ends. Should it be killed itself, the kernel kills the
server.

Command line: the socket's descriptor, the driver's process id, descriptors for the server (with commas), its command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time

from areal_x.process_pool.isolation import die_with_parent, set_process_name, subreaper, sweep

__all__ = ["main"]


def main() -> None:
    """Guard one server from its start to its end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    driver = int(sys.argv[2])
    driver_end = os.pidfd_open(driver)
    if os.getppid() != driver:
        return  # It died first, and its number may be another's by now.
    subreaper()
    set_process_name("server_guardian")
    child_ended = _on_child_end()
    try:
        server = subprocess.Popen(
            sys.argv[3:],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )
    except OSError as error:
        control.sendall(f"failed {error.strerror}: {sys.argv[3]}\n".encode())
        return
    control.sendall(f"started {server.pid}\n".encode())
    _wait_until_over(server, control, driver_end, child_ended)
    with contextlib.suppress(ProcessLookupError):
        server.send_signal(signal.SIGKILL)
    status = server.wait()
    sweep()
    with contextlib.suppress(OSError):
        control.sendall(f"ended {status}\n".encode())


def _on_child_end() -> int:
    """A descriptor that can be read whenever a child has ended. Signals to stop reach the driver, which says so."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # Handlers and not SIG_IGN, which the server would inherit.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    return read_end


def _wait_until_over(
    server: subprocess.Popen[bytes], control: socket.socket, driver_end: int, child_ended: int
) -> None:
    """Return when the server has ended or everything is to be killed."""
    poll = select.poll()
    for fd in (control.fileno(), driver_end, child_ended):
        poll.register(fd, select.POLLIN)
    kill_at: float | None = None
    while kill_at is None or time.monotonic() < kill_at:
        left = None if kill_at is None else max(0.0, kill_at - time.monotonic()) * 1000
        ready = {fd for fd, _ in poll.poll(left)}
        if child_ended in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(child_ended, 4096)
            if _reap(server.pid):
                return
        if driver_end in ready:
            return
        if control.fileno() in ready:
            order = control.recv(4096).decode().split()
            if not order:
                return
            kill_at = time.monotonic() + float(order[-1])
            if kill_at > time.monotonic():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGTERM)


def _reap(server: int) -> bool:
    """Reap adopted processes that have ended; true when the server, which stays for its status, is among the ended."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return False
        if ended.si_pid == server:
            return True
        os.waitpid(ended.si_pid, 0)
