"""The pool's end of the control socket: starts the zygote, sends it requests, hands on its replies."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from areal_x.process_pool.interpreters import find_same_modules
from areal_x.process_pool.wire import memory_file, receive_with_descriptors

__all__ = ["ZygoteLink", "wait_for_exit"]

_CLOSE_SECONDS = 2.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


class ZygoteLink:
    """One zygote process and its control socket.

    ``on_reply(message, descriptors)`` is called for each reply, ``on_death()`` once when the zygote ended unasked.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_reply: Callable[[tuple[Any, ...], list[int]], None],
        on_death: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._on_reply = on_reply
        self._on_death = on_death
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._closed = False
        self._control, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1")}
        program = f"from areal_x.process_pool.zygote import main; main({child.fileno()})"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", find_same_modules(program)],
                stdin=subprocess.DEVNULL,
                pass_fds=(child.fileno(),),
                env=environment,
                start_new_session=True,
            )
        except OSError:
            self._control.close()
            raise
        finally:
            child.close()
        self._control.setblocking(False)
        loop.add_reader(self._control.fileno(), self._readable)

    @property
    def pid(self) -> int:
        """Process id of the zygote."""
        return self._process.pid

    @property
    def fileno(self) -> int:
        """Descriptor of the control socket."""
        return self._control.fileno()

    def register(self, number: int, payload: bytes) -> None:
        """Have the zygote load a function; answered by ``registered``."""
        descriptor = memory_file(payload)
        self._send(("register", number), [descriptor])

    def spawn(self, worker: int, memory_limit_bytes: int, process_limit: int, descriptors: list[int]) -> None:
        """Have the zygote fork a worker that gets ``descriptors`` (owned and closed here); answered by ``spawned``."""
        self._send(("spawn", worker, memory_limit_bytes, process_limit), descriptors)

    def _send(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        self._unsent.append((pickle.dumps(message, 5), descriptors))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._control, [data], descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._control.fileno(), self._flush)
                return
            except (BrokenPipeError, ConnectionResetError):
                break  # The reader sees the end of the socket and reports it.
            self._unsent.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        self._loop.remove_writer(self._control.fileno())

    def _readable(self) -> None:
        while not self._closed:
            try:
                data, descriptors = receive_with_descriptors(self._control, 1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, descriptors = b"", []
            if not data:
                self._disconnect()
                self._on_death()
                return
            self._on_reply(pickle.loads(data), descriptors)

    def _disconnect(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        self._control.close()
        for _, descriptors in self._unsent:
            for descriptor in descriptors:
                os.close(descriptor)
        self._unsent.clear()

    def exit_reason(self) -> str:
        """How the zygote ended, for messages; call it after its death was reported."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def close(self) -> None:
        """Close the control socket, upon which the zygote kills all workers and ends; wait until it is gone."""
        self._disconnect()
        if self._process.returncode is not None:
            return
        pidfd = os.pidfd_open(self._process.pid)
        await wait_for_exit(self._loop, pidfd)
        if self._process.poll() is None:
            self._process.kill()  # Importing a user's module, most likely; its guardians die with it.
        self._process.wait()

    def abandon(self) -> None:
        """Close descriptors without waiting, in a forked child or after the loop has gone."""
        if not self._closed:
            self._closed = True
            self._control.close()
            self._process.returncode = self._process.returncode or 0


async def wait_for_exit(loop: asyncio.AbstractEventLoop, pidfd: int) -> None:
    """Return when the process has ended, or after a few seconds; closes ``pidfd``."""
    gone = loop.create_future()

    def ended() -> None:
        if not gone.done():
            gone.set_result(None)

    loop.add_reader(pidfd, ended)
    try:
        await asyncio.wait_for(gone, _CLOSE_SECONDS)
    except TimeoutError:
        return
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
