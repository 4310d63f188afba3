"""The zygote: a warm, single-threaded process that imports the user's modules once and forks workers on request.

It consumes: requests on its control socket (register a function, spawn a worker), exits of guardians (pidfds).
It waits for: either of them, in one ``poll``. It is unblocked by: the pool, or a worker's death.
It produces: replies on the control socket. When the control socket closes, it kills all workers and ends.

Each worker has a guardian, forked here, which is its parent and outlives it only long enough to see that no process of
it is left (see ``isolation``).
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from areal_x.process_pool import isolation
from areal_x.process_pool.function_transfer import load_function
from areal_x.process_pool.wire import CANNOT_ANSWER, read_memory_file, receive_with_descriptors
from areal_x.process_pool.worker import run_worker

__all__ = ["main"]

_STATUS = struct.Struct("<Bi")


@dataclass(slots=True)
class _Guardian:
    worker: int
    pid: int
    pidfd: int
    status: mmap.mmap


class _SweepRequested(BaseException):
    """SIGTERM reached a guardian that sweeps."""


def main(control_fd: int) -> NoReturn:
    """Serve the control socket until the pool closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    isolation.set_process_name("areal-x-zygote")
    zygote = Zygote(socket.socket(fileno=control_fd))
    zygote.serve()
    os._exit(0)


class Zygote:
    """State of the zygote process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._functions: dict[int, Callable[..., Any]] = {}
        self._guardians: dict[int, _Guardian] = {}
        self._namespace = isolation.own_pid_namespace()

    def serve(self) -> None:
        try:
            self._reply("started", self._namespace is not None)
            while True:
                for descriptor, _ in self._poll.poll():
                    if descriptor in self._guardians:
                        self._reap(self._guardians.pop(descriptor))
                    elif not self._receive():
                        return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            self._kill_all()

    def _receive(self) -> bool:
        data, descriptors = receive_with_descriptors(self._control, 1 << 16)
        if not data:
            return False
        kind, *arguments = pickle.loads(data)
        if kind == "register":
            self._register(arguments[0], read_memory_file(descriptors[0]))
        else:
            self._spawn(*arguments, *descriptors)
        return True

    def _reply(self, *message: Any, descriptors: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._control, [pickle.dumps(message, 5)], descriptors)

    def _register(self, number: int, payload: bytes) -> None:
        error = None
        try:
            self._functions[number] = load_function(payload)
        except BaseException as caught:  # The boundary to the user's modules: importing runs their code.
            error = f"{type(caught).__name__}: {caught}"[:2000], traceback.format_exc()[-20000:]
        gc.collect()
        gc.freeze()  # Workers share these pages; the collector must not write to them.
        num_threads = len(os.listdir("/proc/self/task"))
        names = sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
        self._reply("registered", number, error, num_threads, names)

    def _spawn(self, worker: int, memory_limit_bytes: int, process_limit: int, calls_fd: int, results_fd: int) -> None:
        status = mmap.mmap(-1, mmap.PAGESIZE)
        try:
            with isolation.new_pid_namespace(self._namespace):
                pid = os.fork()
        except OSError as error:
            os.close(calls_fd)
            os.close(results_fd)
            self._reply("spawn_failed", worker, str(error))
            return
        if pid == 0:
            self._control.close()
            for guardian in self._guardians.values():
                os.close(guardian.pidfd)
            calls, results = socket.socket(fileno=calls_fd), socket.socket(fileno=results_fd)
            in_namespace = self._namespace is not None
            _guard(calls, results, status, in_namespace, self._functions, memory_limit_bytes, process_limit)
        os.close(calls_fd)
        os.close(results_fd)
        pidfd = os.pidfd_open(pid)
        self._guardians[pidfd] = _Guardian(worker, pid, pidfd, status)
        self._poll.register(pidfd, select.POLLIN)
        kill_signal = signal.SIGKILL if self._namespace is not None else signal.SIGTERM
        self._reply("spawned", worker, int(kill_signal), descriptors=(pidfd,))

    def _reap(self, guardian: _Guardian) -> None:
        self._poll.unregister(guardian.pidfd)
        os.close(guardian.pidfd)
        os.waitpid(guardian.pid, 0)
        known, status = _STATUS.unpack_from(guardian.status)
        guardian.status.close()
        self._reply("exited", guardian.worker, status if known else None)

    def _kill_all(self) -> None:
        kill_signal = signal.SIGKILL if self._namespace is not None else signal.SIGTERM
        for guardian in self._guardians.values():
            signal.pidfd_send_signal(guardian.pidfd, kill_signal)
        for guardian in self._guardians.values():
            os.waitpid(guardian.pid, 0)


def _guard(
    calls: socket.socket,
    results: socket.socket,
    status: mmap.mmap,
    in_namespace: bool,
    functions: dict[int, Callable[..., Any]],
    memory_limit_bytes: int,
    process_limit: int,
) -> NoReturn:
    """The guardian's life: fork the worker, wait for it, note how it ended, leave no process of it behind."""
    worker = 0
    try:
        if not in_namespace:
            isolation.subreaper()
            signal.signal(signal.SIGTERM, _request_sweep)
        isolation.die_with_parent(signal.SIGKILL if in_namespace else signal.SIGTERM)
        os.setsid()
        isolation.set_process_name("areal-x-guard")
        worker = os.fork()
        if worker == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            run_worker(calls, results, functions, memory_limit_bytes, process_limit)
        calls.close()
        results.close()
        while True:
            pid, wait_status = os.waitpid(-1, 0)
            if pid == worker:
                _STATUS.pack_into(status, 0, 1, wait_status)
                break
    except _SweepRequested:
        pass
    except BaseException:  # The boundary of a process: it must end here, not run the zygote's loop.
        if worker == 0:
            os._exit(CANNOT_ANSWER)
        traceback.print_exc(file=sys.__stderr__)
    if not in_namespace:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        isolation.sweep()
    os._exit(0)


def _request_sweep(number: int, frame: types.FrameType | None) -> None:
    raise _SweepRequested
