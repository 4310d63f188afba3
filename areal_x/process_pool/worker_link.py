"""The pool's end of one worker: sends calls, reads results, watches the deadline, takes unreceived calls back."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import signal
import socket
import time
from collections import deque
from typing import Any, Protocol

from areal_x.process_pool.calls import Call, CallResult
from areal_x.process_pool.wire import (
    CALL_NUMBER,
    KIND_ERROR,
    KIND_FLOAT,
    KIND_READY,
    MAX_INLINE_BYTES,
    RESULT_HEADER,
    memory_file,
    receive_with_descriptors,
)

__all__ = ["WorkerLink", "WorkerOwner"]

_TAKE_BACK_SECONDS = 0.01
"""A call that runs longer gives up the calls that were sent behind it."""
_CANCEL_GRACE_SECONDS = 0.05
"""A call that nobody waits for any more may run so long before its worker is killed."""
_EXIT_GRACE_SECONDS = 0.02
"""Between the end of a worker's socket and its kill: long enough to learn how it ended by itself."""


class WorkerOwner(Protocol):
    """What a worker link tells its pool. All are called on the loop and must not raise."""

    def worker_ready(self, worker: WorkerLink) -> None: ...
    def worker_finished(self, worker: WorkerLink, call: Call, result: CallResult, left_processes: bool) -> None: ...
    def worker_drained(self, worker: WorkerLink) -> None: ...
    def calls_taken_back(self, calls: list[Call]) -> None: ...


_SCRIPT_IN_WORKERS = b"__mp_main__"


class _DriverUnpickler(pickle.Unpickler):
    """Classes of the user's script have another module name in the workers."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class("__main__" if module == "__mp_main__" else module, name)


class WorkerLink:
    """One worker process, from the request to fork it until its guardian's exit is reported."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop, owner: WorkerOwner) -> None:
        self.number = number
        self.pending: deque[Call] = deque()
        """Calls sent, in order; the first one runs."""
        self.ready = False
        self.killed_for: str | None = None
        """Why this pool killed it, if it did: ``timeout``, ``cancelled``, ``closed``, ``lost`` or ``replaced``."""
        self._loop = loop
        self._owner = owner
        ends: list[socket.socket] = []
        try:
            ends += socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ends += socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            receiving = os.dup(ends[1].fileno())
        except OSError:  # No descriptor is left: the pool must not keep the few it got.
            for end in ends:
                end.close()
            raise
        self._calls, self._calls_peer, self._results, results_peer = ends
        for end in (self._calls, self._results):
            end.setblocking(False)
        # Two descriptors of the receiving end: the worker's, and ours to take calls back.
        self.child_descriptors = [receiving, results_peer.detach()]
        self._pidfd = -1
        self._kill_signal = int(signal.SIGKILL)
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.head_started = 0.0
        self._reading = True
        loop.add_reader(self._results.fileno(), self._readable)

    @property
    def usable(self) -> bool:
        """Whether it can be given calls: neither killed nor found dead."""
        return self._reading and self.killed_for is None

    def spawned(self, pidfd: int, kill_signal: int) -> None:
        """The zygote forked it; ``pidfd`` is its guardian's."""
        self._pidfd = pidfd
        self._kill_signal = kill_signal
        if self.killed_for is not None:
            self._send_kill()

    # -- sending ---------------------------------------------------------------------------------------------------

    def send(self, call: Call, payload: bytes, now: float) -> bool:
        """Send a call; False when the socket is full (only possible behind other calls)."""
        prefix = CALL_NUMBER.pack(call.number)
        try:
            if len(payload) <= MAX_INLINE_BYTES:
                self._calls.send(prefix + payload)
            else:
                descriptor = memory_file(payload)
                try:
                    socket.send_fds(self._calls, [prefix], [descriptor])
                finally:
                    os.close(descriptor)
        except BlockingIOError:
            return False
        self.pending.append(call)
        num_pending = len(self.pending)
        if num_pending == 1:
            self.head_started = now
        if num_pending <= 2:  # Further ones change nothing: the first is watched, and that others wait is known.
            self._watch()
        return True

    def take_back(self) -> None:
        """Receive what the worker has not received yet; exactly one of the two gets each message."""
        numbers = set()
        while True:
            try:
                data, descriptors = receive_with_descriptors(self._calls_peer, CALL_NUMBER.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            if not data:
                break
            numbers.add(CALL_NUMBER.unpack(data)[0])
        if numbers:
            taken = [call for call in self.pending if call.number in numbers]
            self.pending = deque(call for call in self.pending if call.number not in numbers)
            self._owner.calls_taken_back(taken)
            if not self.pending and self.usable:
                # It had not received even the first (its core was busy): no result will come to bring it new calls.
                self._owner.worker_drained(self)

    # -- deadlines -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Keep one timer that fires no later than the next thing to do.

        It is not moved for each call: a timer that fires early looks again.
        """
        call = self.pending[0]
        if call.future.done():
            call.timeout = min(call.timeout, _CANCEL_GRACE_SECONDS)
        allowed = call.timeout
        if len(self.pending) > 1 and allowed > _TAKE_BACK_SECONDS:
            allowed = _TAKE_BACK_SECONDS
        at = self.head_started + allowed
        if self._timer is None or self._timer_at > at:
            self._set_timer(at)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(at - time.monotonic(), 0.0), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self.killed_for is not None:
            return
        self._readable()  # After a stall of the loop the result may have come long ago.
        if not self.pending or self.killed_for is not None:
            return
        call = self.pending[0]
        running = time.monotonic() - self.head_started
        if running >= call.timeout:
            self.kill("cancelled" if call.future.done() else "timeout")
            return
        if len(self.pending) > 1 and running >= _TAKE_BACK_SECONDS:
            self.take_back()
            if self._timer is None:
                self._set_timer(self.head_started + call.timeout)
        elif self._timer is None:
            self._watch()

    def cancelled(self, call: Call, now: float) -> None:
        """Nobody waits for ``call`` any more: its worker has a short grace to finish it."""
        if self.pending and self.pending[0] is call and self.killed_for is None:
            call.timeout = min(call.timeout, now - self.head_started + _CANCEL_GRACE_SECONDS)
            self._watch()

    # -- receiving -------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if not self._reading:
            return
        try:
            data = self._results.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._reading = False
            self._loop.remove_reader(self._results.fileno())
            if self.killed_for is None:
                self._loop.call_later(_EXIT_GRACE_SECONDS, self.kill, "lost")
            return
        if self._buffer:
            self._buffer += data
            data = bytes(self._buffer) if self._complete() else b""
            if not data:
                return
            self._buffer.clear()
        offset, size, header = 0, len(data), RESULT_HEADER.size
        while size - offset >= header:
            length, kind, flags, number, started, seconds, value = RESULT_HEADER.unpack_from(data, offset)
            end = offset + header + length
            if end > size:
                break
            self._result(kind, flags, number, started, seconds, value, data[offset + header : end])
            offset = end
        if offset < size and self._reading:
            self._buffer += data[offset:]
        if self.pending and self.killed_for is None:
            self._watch()
        if not self.killed_for and self.ready:
            self._owner.worker_drained(self)

    def _complete(self) -> bool:
        """Whether the buffer holds a whole result; keeps a large one from being parsed again and again."""
        if len(self._buffer) < RESULT_HEADER.size:
            return False
        length: int = RESULT_HEADER.unpack_from(self._buffer)[0]
        return len(self._buffer) >= RESULT_HEADER.size + length

    def _result(
        self, kind: int, flags: int, number: int, started: float, seconds: float, value: Any, body: bytes
    ) -> None:
        if kind == KIND_READY:
            self.ready = True
            if self.killed_for is None:
                self._owner.worker_ready(self)
            return
        call = self.pending.popleft()
        assert call.number == number, f"worker {self.number} answered call {number}, expected {call.number}"
        self.head_started = started + seconds
        if kind == KIND_FLOAT:
            result = CallResult("ok", value, seconds=seconds, started_at=started, attempts=call.attempts)
        elif kind == KIND_ERROR:
            name, summary, traceback, output = pickle.loads(body)
            result = CallResult("error", None, summary, name, traceback, output, seconds, started, call.attempts)
        else:
            result = _value_result(body, seconds, started, call.attempts)
        self._owner.worker_finished(self, call, result, bool(flags))

    # -- the end ---------------------------------------------------------------------------------------------------

    def kill(self, reason: str) -> None:
        """Kill the worker and every process that it started; the zygote reports when all are gone."""
        if self.killed_for is not None:
            return
        self.killed_for = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._send_kill()

    def _send_kill(self) -> None:
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, self._kill_signal)
            except ProcessLookupError:
                return  # It ended by itself; the report is on its way.

    def read_last_results(self) -> None:
        """Take the results that the worker sent before it ended."""
        reason, self.killed_for = self.killed_for, self.killed_for or "exited"
        while self._reading:
            before = len(self._buffer), len(self.pending)
            self._readable()
            if before == (len(self._buffer), len(self.pending)):
                break
        self.killed_for = reason

    def take_pidfd(self) -> int | None:
        """The guardian's pidfd, which the caller must close from now on."""
        pidfd, self._pidfd = self._pidfd, -1
        return pidfd if pidfd >= 0 else None

    def close(self) -> None:
        """Release every descriptor. The process must be gone or about to go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._results.fileno())
        self.abandon()

    def abandon(self) -> None:
        """Close descriptors without touching the loop."""
        for end in (self._calls, self._calls_peer, self._results):
            end.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _value_result(body: bytes, seconds: float, started: float, attempts: int) -> CallResult:
    try:
        if _SCRIPT_IN_WORKERS in body:
            value, output = _DriverUnpickler(io.BytesIO(body)).load()
        else:
            value, output = pickle.loads(body)
    except Exception as error:  # The boundary to the user's value: unpickling runs its code.
        text = f"the function's result cannot be read here: {type(error).__name__}: {error}"
        return CallResult("error", None, text, type(error).__name__, text, "", seconds, started, attempts)
    return CallResult("ok", value, None, None, None, output, seconds, started, attempts)
